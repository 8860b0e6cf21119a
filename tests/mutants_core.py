"""Breaks of attention, the kernels under it, and packing; see mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

SHARED = "runtime/test_prefix.py::test_answers_may_begin_with_the_prompts_last_tokens"
TESTS = {  # which tests must notice a break in which file
    "maths/attention.py": ("maths/test_attention.py",),
    "maths/decode.py": ("maths/test_decode.py",),
    "maths/dense.py": ("maths/test_dense.py",),
    "maths/kernels.py": ("maths/test_kernels.py",),
    "maths/pack.py": ("maths/test_pack.py", f"{SHARED}[qwen3_vl-graph]"),
    "maths/spans.py": ("maths/test_attention.py", "maths/test_share.py"),
    "maths/varlen.py": ("maths/test_varlen.py", "maths/test_attention.py"),
    "models/tiled.py": ("models/test_tiled.py",),
}

ATTENTION = breaks(
    "maths/attention.py",
    ("(seen_lse - before_lse).sigmoid()", "(before_lse - seen_lse).sigmoid()", "join weights swapped"),
    (
        "at.put(lse, torch.logaddexp(before_lse, seen_lse))",
        "at.put(lse, torch.maximum(before_lse, seen_lse))",
        "shares that do not add up to 1",
    ),
    (
        "        at.put(lse, torch.logaddexp(before_lse, seen_lse))\n",
        "",
        "backward without the joined LSE: value right, gradient wrong",
    ),
    (
        "                at.places.add(total, share)",
        "                at.places.put(total, share)",
        "an ancestor's own share, other answers' shares and buffers overwritten",
    ),
    (
        "zip((call.query, call.key, call.key), (dq, gk, gv), shares",
        "zip((call.query, call.key, call.key), (dq, gk, gk), shares",
        "dV of an ancestor into dK",
    ),
    ("keys, values, gk, gv = k, v, dk, dv", "keys, values, gk, gv = k, v, dk.clone(), dv", "an ancestor's gK lost"),
    ("gk, gv = given.into or (", "gk, gv = (", "buffers that stay empty"),
    (
        "if prefix_k is None or given.into else",
        "if prefix_k is None else",
        "gradients of a kept prefix twice: buffer and autograd",
    ),
    (
        "if into is not None and not q.requires_grad",
        "if into is None and not q.requires_grad",
        "no backward for answers that learn nothing",
    ),
    ("out, lse = given.known or _forward(", "out, lse = _forward(", "a kept forward computed again"),
    ("x if x.stride(-1) == 1 else x.contiguous()", "x", "strided heads to the kernel"),
)

SPANS = breaks(
    "maths/spans.py",
    (
        "before[segment.stop] - first, key, length",
        "before[segment.stop] - first, key, length - 1",
        "the prefix's last token unseen",
    ),
    (
        "before[segment.stop] - first, key, length",
        "min(before[segment.stop] - first, 1), key, length",
        "later answers do not see the prefix",
    ),
    (
        "            open_until.append(segment.stop)\n",
        "            open_until.append(segment.stop if not open_until else 0)\n",
        "depths mixed up below the second",
    ),
    ("open_until[-1] <= start", "open_until[-1] < start", "a neighbour taken for a child: a call of its own"),
    (
        "if segment.inner and length:",
        "if segment.inner and length and not open_until:",
        "an ancestor forgotten: only the root is read",
    ),
    (
        "(start - before[start] if segment.inner else before[start]) if apart else start",
        "before[start] if apart else start",
        "kept prefixes' keys at their answers' places",
    ),
)

VARLEN = breaks(
    "maths/varlen.py",
    ("q, k, v, 0.0, call.causal, scale=scale", "q, k, v, 0.0, False, scale=scale", "answers see their future"),
    ("*given, 0.0, call.causal, scale=scale", "*given, 0.0, True, scale=scale", "backward always causal"),
    ("*given, 0.0, call.causal, scale=scale", "*given, 0.0, call.causal", "backward with the default scale"),
    (
        "kernels.forward(q, k, v, causal=call.causal",
        "kernels.forward(q, k, v, causal=False",
        "answers see their future without a flash kernel",
    ),
    ("*given, causal=call.causal", "*given, causal=True", "backward always causal without a flash kernel"),
    ("(torch.float16, torch.bfloat16))", "(torch.float16, torch.float32))", "float32 to CUDA's flash kernel"),
    ('device.type == "cpu" or', 'device.type != "cuda" or', "aten's CPU op on other devices"),
    (
        "stacked.index_fill(0, self.padding, torch.inf)",
        "stacked.index_fill(0, self.padding, 0.0)",
        "padded queries leak into gradients",
    ),
    (
        "line[:length] = torch.arange(start, start + length)",
        "line[:length] = torch.arange(start, start + length).flip(0)",
        "places reversed",
    ),
    ("flat.index_select(0, self.real)", "flat.index_select(0, self.real.flip(0))", "results out of order"),
    (
        "return query.unfold(dq), key.unfold(dk), key.unfold(dv)",
        "return query.unfold(dq), key.unfold(dv), key.unfold(dk)",
        "dK for dV",
    ),
    ("_similar(span[1]) if causal else span[3]", "span[1] if causal else span[3]", "a call for every length"),
    ("_similar(span[1]) if causal else span[3]", "_similar(span[1]) if causal else 0", "keys of all lengths stacked"),
    ("all(start + length == after for", "any(start + length == after for", "runs with gaps taken for one"),
    ("dense.LONG if whole else LONG", "dense.LONG", "long prefixes gathered before a ragged kernel"),
    ("query.places.of(lse_TH).T.contiguous()", "query.places.of(lse_TH).T", "LSE in another order than the op reads"),
    (
        "x.narrow(0, self.start, self.count).add_(values)",
        "x.narrow(0, self.start, self.count).copy_(values)",
        "a run overwritten instead of added to",
    ),
    (
        "call.key.longest >= TILED and torch.get_num_threads() == 1",
        "call.key.longest >= TILED",
        "tiles also where heads could go in parallel",
    ),
)

KERNELS = breaks(
    "maths/kernels.py",
    ("q = q * (scale * log2(e))", "q = q * scale", "powers of 2 of natural scores"),
    ("* -log2(e)], -1)", "* -1], -1)", "natural log-sum-exp for one in base 2"),
    ("-(grad * out).sum(-1, keepdim=True)", "-(grad * out).mean(-1, keepdim=True)", "mean for the row sum"),
    (
        "dv[:, keys].baddbmm_(share, grad[:, rows])",
        "dv[:, keys] = torch.bmm(share, grad[:, rows])",
        "dV of the last tile",
    ),
    ("dk[:, keys].baddbmm_(dscore, q[:, rows])", "dk[:, keys] = torch.bmm(dscore, q[:, rows])", "dK of the last tile"),
    (
        "dq[:, rows].baddbmm_(dscore.mT, k[:, keys])",
        "dq[:, rows] = torch.bmm(dscore.mT, k[:, keys])",
        "dQ of the last tile",
    ),
    ("dq.mul_(scale), dk.mul_(log(2))", "dq, dk.mul_(log(2))", "dQ without the scale"),
    ("dq.mul_(scale), dk.mul_(log(2))", "dq.mul_(scale), dk", "dK of scores in base 2"),
    ("later = key[:, None] > place", "later = key[:, None] > place + 1", "one key of the future"),
    ("if causal and last > start:", "if causal and first > start:", "tiles on the diagonal unmasked"),
    ("share[:, -len(later) :]", "share[:, : len(later)]", "the first keys of a tile masked for the last"),
    (".mul_(share)\n", "\n", "softmax's share forgotten in dS"),
    ("slice(start * each, stop * each)", "slice(start, stop)", "places for rows of several heads"),
    (
        "unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1)",
        "unflatten(1, (-1, kv_heads)).transpose(1, 2).transpose(2, 3).flatten(2, 3).flatten(0, 1)",
        "heads dealt in turn, not in blocks",
    ),
)

DENSE = breaks(
    "maths/dense.py",
    ("(9, 0)", "(8, 0)", "cuDNN where it is not faster"),
    ("len(q_THD) >= LONG", "len(q_THD) > 0", "a plan for every short length"),
    (
        "return x.contiguous().transpose(0, 1)[None]",
        "return x.transpose(0, 1).contiguous()[None]",
        "another layout than plans are kept for",
    ),
    ("< NEAR) and all(", "< NEAR) or all(", "a trial that overlooks the log-sum-exp"),
    ("more_lse = want_lse + 0.5", "more_lse = want_lse", "a trial without a joined log-sum-exp"),
)

TILED = breaks(
    "models/tiled.py",
    (
        "range(0, hidden.shape[1], ctx.tokens)",
        "range(0, hidden.shape[1] - ctx.tokens + 1, ctx.tokens)",
        "the last, shorter tile without a backward",
    ),
    (
        "out[:, start : start + tokens] = part",
        "out[:, start : start + tokens - 1] = part[:, : tokens - 1]",
        "a token lost at every tile's end",
    ),
    ("total.add_(share)", "total.copy_(share)", "the last tile's gradient alone"),
    ("torch.promote_types(p.dtype, torch.float32)", "p.dtype", "sums over tiles in bfloat16"),
    (
        "grad[:, cut], allow_unused",
        "grad[:, : part.shape[1]], allow_unused",
        "every tile with the first one's gradient",
    ),
    ("(hidden.requires_grad or learned)", "hidden.requires_grad", "weights below a frozen input learn nothing"),
)

PACK = breaks(
    "maths/pack.py",
    (
        "first = last if lead == 0 else len(self.ids) + lead - 1",
        "first = last",
        "the prefix, not the header, predicts the first token",
    ),
    ("len(self.ids) + lead - 1", "len(self.ids) + lead - 2", "the token before the header's last"),
    ("int(prompt.position_3P.max()) + 1", "int(prompt.position_3P[0, -1]) + 1", "positions go on from the last token"),
    (
        "(next_position + torch.arange(len(fed) - lead))",
        "(next_position + lead + torch.arange(len(fed) - lead))",
        "the header's positions counted twice",
    ),
    ("*answer[:-1]]", "*answer[1:]]", "tokens shifted by one"),
    ("[self.answers] * len(answer)", "[0] * len(answer)", "every token is the first answer's"),
    ("seen_P[first:last] = True", "seen_P[first : last + 1] = True", "one visual token too many"),
    (
        "zip(first, same, strict=True)) if a != b)]",
        "zip(first, same, strict=True)) if a != b) + 1]",
        "a token shared that differs",
    ),
    ("len(ends) == 1 and ends.pop() <= len(first)", "len(ends) == 1", "a part of a film shared"),
    ("row.position_3T[:, place_U]", "row.position_3T[:, : len(place_U)]", "positions of the row's beginning"),
    ("torch.tensor(sorted(mine))", "torch.tensor(sorted(mine)[len(mine) > 1 :])", "the first answer of a run lost"),
    ("+ length > most:", "+ length >= most:", "runs shorter than memory wants"),
    ("[sum(segment.length for segment in unit) for", "[unit[0].length for", "half a pair's tokens"),
    (
        "for place in range(together)})\n            run = []",
        "for place in range(1)})\n            run = []",
        "a pair's first answer alone",
    ),
    ("segment.length - 1] = number", "segment.length - 1] = 0", "every answer begins at the first prompt's end"),
    ("ends + torch.arange(len(here_A))", "ends + here_A", "answers of a run found at their places in the row"),
    ("if count in mine:", "if count <= max(mine):", "answers of earlier runs in the layout"),
    (
        "old_logprob_R=row.old_logprob_R[mine_R]",
        "old_logprob_R=row.weight_R[mine_R]",
        "weights for old log-probabilities",
    ),
)

DECODE = breaks(
    "maths/decode.py",
    ("-1, width) * scale", "-1, width)", "the scale forgotten"),
    (
        "torch.stack([lse for _, lse in found]).softmax(0)",
        "torch.stack([lse for _, lse in found]).sigmoid()",
        "shares that do not add up to 1",
    ),
    (" - share.amax(-1, keepdim=True).log()", "", "the largest score for the log-sum-exp"),
    (">= torch.tensor(lengths)[:, None]", "> torch.tensor(lengths)[:, None]", "one key is read that fills up"),
    ("_read(own_q, own_k, own_v, unseen)", "_read(own_q, own_k, own_v, None)", "room without a token is read"),
    (
        "torch.arange(answer, answer + count)",
        "torch.arange(answer, answer + count).flip(0)",
        "answers of a prefix in another order",
    ),
    ("at += range(m * widest, m * widest + count)", "at += range(answer, answer + count)", "uneven answers mixed up"),
    (
        "q.reshape(answers, own_k.shape[1], -1, width) * scale",
        "q.reshape(answers, -1, own_k.shape[1], width).transpose(1, 2) * scale",
        "heads dealt in turn, not in blocks",
    ),
    ("return q.float() @ k.float().mT", "return (q @ k.mT).float()", "scores rounded to half precision"),
)

MUTANTS = ATTENTION + SPANS + VARLEN + KERNELS + DENSE + TILED + PACK + DECODE
