"""Shared-prefix attention the plain way: a row [prefix | answer] for every answer, one head and one query at a time."""

import torch


def causal(q, k, v, scale):
    """[T, H, D] queries, [T, K, D] keys and values: query t reads keys 0..t; heads of a key head are neighbours."""
    heads, kv_heads = q.shape[1], k.shape[1]
    outs = []
    for h in range(heads):
        kv = h * kv_heads // heads
        rows = []
        for t in range(len(q)):
            score = (k[: t + 1, kv] @ q[t, h]) * scale
            rows.append(score.softmax(0) @ v[: t + 1, kv])
        outs.append(torch.stack(rows) if rows else q[:, h])
    return torch.stack(outs, 1)


def paths(layout):
    """For every segment in row order: (is it an answer, its places in the row, all places before it on its path)."""
    found, at = [], 0

    def walk(node, before):
        nonlocal at
        length, children = (node, ()) if isinstance(node, int) else node
        own = list(range(at, at + length))
        at += length
        found.append((isinstance(node, int), own, before))
        for child in children:
            walk(child, before + own)

    for group in layout.groups:
        walk(group, [])
    return found


def shared_prefix(q, k, v, layout, scale):
    """[1, heads, T, D] tensors of a packed row, as `longtake.maths.attention.shared_prefix_attention` takes them."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    outs = []
    for _, own, before in paths(layout):
        places = [*before, *own]
        outs.append(causal(q[places], k[places], v[places], scale)[len(before) :])
    return torch.cat(outs).transpose(0, 1)[None]
