"""Fewer visual tokens, a number at a time, from the papers' words: lists of lists, no tensor but the leaves."""

from __future__ import annotations

import math

import torch


def mean(vectors):
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total / len(vectors)


def pooled(frame, stride, mode):
    """Rows of [E] of one frame, given as rows of [E]."""
    h, w = len(frame), len(frame[0])
    if stride == 1:
        return frame
    if mode == "bilinear":
        return [
            [between(frame, y, x, h, w, stride) for x in range(math.ceil(w / stride))]
            for y in range(math.ceil(h / stride))
        ]
    rows = []
    for y in range(0, h - stride + 1, stride):
        row = []
        for x in range(0, w - stride + 1, stride):
            inside = [frame[y + i][x + j] for i in range(stride) for j in range(stride)]
            row.append(mean(inside) if mode == "average" else torch.stack(inside).max(0).values)
        rows.append(row)
    return rows


def between(frame, y, x, h, w, stride):
    """The value at the centre of the pixel (y, x) of a grid of ceil(h / stride) rows laid over the frame."""
    (y0, y1, b), (x0, x1, a) = side(y, h, stride), side(x, w, stride)
    top = frame[y0][x0] * (1 - a) + frame[y0][x1] * a
    low = frame[y1][x0] * (1 - a) + frame[y1][x1] * a
    return top * (1 - b) + low * b


def side(place, length, stride):
    at = max(0.0, (place + 0.5) * length / math.ceil(length / stride) - 0.5)
    low = min(int(at), length - 1)
    return low, min(low + 1, length - 1), at - low


def joined(frames, left):
    """Segments [start, stop) of neighbouring frames: the two most alike are joined, again and again."""
    flat = [torch.cat([vector for row in frame for vector in row]).detach() for frame in frames]
    segments = [(i, i + 1) for i in range(len(frames))]
    while len(segments) > left:
        best, found = None, -2.0
        for i in range(len(segments) - 1):
            a, b = (mean(flat[start:stop]) for start, stop in segments[i : i + 2])
            alike = round(float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()), 4)
            if alike > found:
                best, found = i, alike
        segments[best : best + 2] = [(segments[best][0], segments[best + 1][1])]
    return segments


def averaged(frames, time, merge):
    if merge:
        left = min(len(frames), int(merge)) if merge >= 1 else max(1, round(merge * len(frames)))
        segments = joined(frames, left)
    else:
        segments = [(start, min(start + time, len(frames))) for start in range(0, len(frames), time)]
    h, w = len(frames[0]), len(frames[0][0])
    return [
        [[mean([frame[y][x] for frame in frames[start:stop]]) for x in range(w)] for y in range(h)]
        for start, stop in segments
    ]


def reduce(z_FhwE, how, project, newline_E):
    """[N, E], one token after another."""
    frames = [[list(row) for row in frame] for frame in z_FhwE]

    def projected(frames):
        return [[[project(vector) for vector in row] for row in frame] for frame in frames]

    frames = averaged(frames if how.before else projected(frames), how.time, how.merge)
    if how.apart:
        h, w = len(frames[0]), len(frames[0][0])
        temporal = [mean([vector for row in frame for vector in row]) for frame in frames]
        spatial = [mean([frame[y][x] for frame in frames]) for y in range(h) for x in range(w)]
        blocks = [[[*temporal]], [[*spatial]]]
    else:
        strides = [how.stride if i % how.slow == 0 else 2 * how.stride for i in range(len(frames))]
        blocks = [pooled(frame, stride, how.mode) for frame, stride in zip(frames, strides, strict=True)]
    blocks = projected(blocks) if how.before else blocks
    tokens = []
    for block in blocks:
        for row in block:
            tokens += [*row, *[newline_E] * (how.newline == "grid")]
        tokens += [newline_E] * (how.newline == "frame")
    return torch.stack([*tokens, *[newline_E] * (how.newline == "one_token")])
