"""The plain twin of NVILA's blocks of patches."""

import math

import torch


def loop(patch_NPC, edge, column_major=False):
    """A patch at a time."""
    side = math.isqrt(patch_NPC.shape[1])
    count = -(-side // edge)
    places = [(x, y) if column_major else (y, x) for y in range(count) for x in range(count)]
    films = []
    for one in patch_NPC:
        tokens = []
        for row, column in places:
            inside = []
            for y in range(row * edge, row * edge + edge):
                for x in range(column * edge, column * edge + edge):
                    there = y < side and x < side
                    inside.append(one[y * side + x] if there else torch.zeros_like(one[0]))
            tokens.append(torch.cat(inside))
        films.append(torch.stack(tokens))
    return torch.stack(films)
