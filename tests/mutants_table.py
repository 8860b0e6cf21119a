"""Breaks of longtake.maths: file, text that occurs once in it, what takes its place, and what that means."""

from __future__ import annotations

from typing import NamedTuple

TESTS = {  # which tests must notice a break in which file
    "maths/advantage.py": ("maths/test_advantage.py",),
    "maths/algorithms.py": ("maths/test_algorithms.py",),
    "maths/attention.py": ("maths/test_attention.py",),
    "maths/kernels.py": ("maths/test_kernels.py",),
    "maths/logprob.py": ("maths/test_logprob.py",),
    "maths/loss.py": ("maths/test_loss.py",),
    "maths/pack.py": ("maths/test_pack.py",),
    "maths/stats.py": ("maths/test_stats.py",),
    "maths/varlen.py": ("maths/test_attention.py",),
}


class Mutant(NamedTuple):
    file: str  # in src/longtake
    old: str
    new: str
    why: str


def breaks(file: str, *lines: tuple[str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(file, *line) for line in lines)


ADVANTAGE = breaks(
    "maths/advantage.py",
    (
        "reward_NG - reward_NG.mean(-1, keepdim=True)",
        "reward_NG - reward_NG.mean()",
        "mean of the batch, not the group",
    ),
    (
        "torch.where(equal_groups(reward_NG)[:, None], 0, reward_NG - reward_NG.mean(-1, keepdim=True))",
        "reward_NG - reward_NG.mean(-1, keepdim=True)",
        "rounding noise for equal groups",
    ),
    ("reward_NG.amax(-1) == reward_NG.amin(-1)", "reward_NG.amax() == reward_NG.amin(-1)", "largest of the batch"),
    ("reward_NG.std(-1, keepdim=True)", "reward_NG.std()", "deviation of the batch, not the group"),
    ("reward_NG.std(-1, keepdim=True)", "reward_NG.std(-1, keepdim=True, correction=0)", "population deviation"),
    ("reward_NG[~equal_groups(reward_NG)]", "reward_NG", "dropped groups in the deviation"),
    ("kept_NG.std()", "group_mean(kept_NG).std()", "deviation of centred rewards"),
    ("group_mean(reward_NG) * answers / (answers - 1)", "group_mean(reward_NG)", "answer in its own baseline"),
    ("_over_std(reward_NG - reward_NG.mean())", "_over_std(group_mean(reward_NG))", "group mean for batch mean"),
    ("return _over_std(group_mean(reward_NG))", "return _over_std(reward_NG)", "baseline forgotten"),
    ("centred_NG / centred_NG.std()", "centred_NG / centred_NG.std(-1, keepdim=True)", "deviation of the group"),
    (".clamp(-1, 0)", ".clamp(max=0)", "penalty without a floor"),
    ("(max_tokens - margin - length_NG)", "(max_tokens - length_NG)", "penalty starts too late"),
    ("advantage_NG / length_NG.clamp(min=1)", "advantage_NG", "an answer's tokens do not share"),
    ("float(length_NG.sum())", "float(advantage_NG.numel())", "answers counted for tokens"),
    ("float(advantage_NG.numel() * max_tokens)", "float(length_NG.sum())", "constant that depends on lengths"),
)

LOSS = breaks(
    "maths/loss.py",
    (
        "logprob_R, 0) * -weight_R\n    return _terms(term_R, torch.zeros",
        "logprob_R, 0) * weight_R\n    return _terms(term_R, torch.zeros",
        "sign",
    ),
    ("term_R = torch.where(live_R, logprob_R, 0) * -weight_R\n", "term_R = logprob_R * -weight_R\n", "mask forgotten"),
    ("-torch.minimum(", "-torch.maximum(", "maximum for minimum"),
    ("1 - clip_low, 1 + clip_high) * weight_R", "1 - clip_high, 1 + clip_low) * weight_R", "clip bounds swapped"),
    (
        "_surrogate(log_ratio_R.exp(),",
        "_surrogate(log_ratio_R.exp().sqrt() * log_ratio_R.exp().sqrt().detach(),",
        "value right, half the gradient",
    ),
    ("torch.where(live_R, logprob_R - old_logprob_R, 0)", "(logprob_R - old_logprob_R) * live_R", "0 times inf"),
    ("log_ratio_R) / length).exp()", "log_ratio_R)).exp()", "sequence ratio not length-normalised"),
    ("live_R.to(zeros.dtype)", "torch.ones_like(log_ratio_R)", "tokens out of the loss in the length"),
    ("_surrogate(ratio[answer_R]", "_surrogate(ratio[answer_R * 0]", "every answer has the first one's ratio"),
    ("ratio_R = log_ratio_R.detach().exp()", "ratio_R = log_ratio_R.exp()", "gradient through CISPO's weight"),
    (
        "ratio_R.clamp(1 - clip_low, 1 + clip_high)\n",
        "ratio_R.clamp(1 - clip_high, 1 + clip_low)\n",
        "CISPO's bounds swapped",
    ),
    ("-weight_R * bounded_R", "-weight_R * ratio_R", "CISPO's weight unbounded"),
    ("total=term_R.sum()", "total=term_R.mean()", "mean of a micro-batch"),
    ("bound_R < free_R", "bound_R != free_R", "clipped although it has a gradient"),
    ("kl_k1(zero_R, ratio_R)", "kl_k1(ratio_R, zero_R)", "KL's sign"),
    ("log_ratio_R = reference_R - logprob_R", "log_ratio_R = logprob_R - reference_R", "KL the other way"),
    ("(logprob_R - reference_R).square() / 2", "(logprob_R - reference_R).square()", "k2 without the half"),
    ("torch.where(live_R, x, 0) for x", "x for x", "KL penalty without its mask"),
    ("count=live_R.sum()", "count=torch.ones_like(live_R).sum()", "tokens out of the loss counted"),
)

ALGORITHMS = breaks(
    "maths/algorithms.py",
    ("clip_low=0.2, clip_high=0.28", "clip_low=0.2, clip_high=0.2", "clip-higher forgotten"),
    (
        '"grpo", advantage.group_normalised, _token_clip, "per answer mean"',
        '"grpo", advantage.group_normalised, _token_clip, "batch tokens"',
        "GRPO with DAPO's token mean",
    ),
    (
        '"dapo", advantage.group_normalised, _clip_higher, "batch tokens", True',
        '"dapo", advantage.group_normalised, _clip_higher, "batch tokens", False',
        "equal groups counted",
    ),
    ('"dr_grpo", _by_mean', '"dr_grpo", _by_group', "Dr. GRPO divides by the deviation"),
    ("clip_low=3e-4, clip_high=4e-4", "clip_low=4e-4, clip_high=3e-4", "GSPO's bounds swapped"),
    ("clip_low=1.0, clip_high=4.0", "clip_low=1.0, clip_high=0.28", "CISPO's bound"),
    ('"rloo", advantage.leave_one_out', '"rloo", advantage.group_mean', "RLOO with the answer in its baseline"),
    ('"reinforce_pp", _by_batch', '"reinforce_pp", _by_group', "REINFORCE++ normalises groups"),
    ('"longtake", _by_mean', '"longtake", _by_group', "the default's deviation"),
    ("_LONGTAKE, advantage.batch_scale", "_LONGTAKE", "the default's scale"),
)

LOGPROB = breaks(
    "maths/logprob.py",
    ("return logprob_RV.gather", "return logits_RV.gather", "logits for log-probabilities"),
    ("log_softmax(-1)", "log_softmax(0)", "softmax over rows"),
    ("with torch.no_grad():", "with torch.enable_grad():", "gradient through the entropy"),
    ("len(hidden_RE) > rows and", "len(hidden_RE) < rows and", "slices keep their logits"),
    ("hidden_RE.split(rows)", "(hidden_RE / 2 + hidden_RE.detach() / 2).split(rows)", "value right, half the gradient"),
    ("head(hidden_RE) / temperature", "head(hidden_RE) * temperature", "the temperature upside down"),
    ("head(hidden_RE) / temperature", "head(hidden_RE)", "the temperature forgotten"),
    (
        "_slice, head, hidden, target, temperature, use",
        "_slice, head, hidden, target, 1.0, use",
        "slices at temperature 1",
    ),
    (
        "torch.special.entr(logprob_RV.exp())",
        "torch.special.entr((logprob_RV * temperature).softmax(-1))",
        "entropy at temperature 1",
    ),
    ("if not 0 < temperature < inf", "if not 0 <= temperature < inf", "temperature 0"),
    ("torch.special.entr(logprob_RV.exp())", "(-logprob_RV.exp() * logprob_RV)", "0 times inf in the entropy"),
)

KERNELS = breaks(
    "maths/kernels.py",
    (
        "q_bHmD.to(width) * scale, k_bKnD.to(width), v_bKnD.to(width)\n",
        "q_bHmD.to(width), k_bKnD.to(width), v_bKnD.to(width)\n",
        "scale",
    ),
    ("v_bKnD.to(width), grad_bHmD.to(width)", "v_bKnD.to(width), grad_bHmD.to(width) * 2", "twice the gradient"),
    ("keys > queries[:, None]", "keys >= queries[:, None] + 2", "one key of the future"),
    ("((rows.start, rows.stop), (0, k", "((0, rows.stop - rows.start), (0, k", "every slice starts at the first query"),
    (
        "dq[:, :, rows] = _headed(dscore @ k[:, :, keys], q) * scale",
        "dq[:, :, rows] = _headed(dscore @ k[:, :, keys], q)",
        "dQ without the scale",
    ),
    ("dv[:, :, keys] += share", "dv[:, :, keys] = share", "dV of the last slice"),
    ("dk[:, :, keys] += dscore", "dk[:, :, keys] = dscore", "dK of the last slice"),
    (".sub_(_grouped(dot_bHm[:, :, rows], k)[..., None])", "", "softmax's own gradient forgotten"),
    ("out_bHmD.to(width)).sum(-1)", "out_bHmD.to(width)).mean(-1)", "mean for the row sum"),
    ("score.logsumexp(-1)", "score.logsumexp(-1) / 0.6931471805599453", "log-sum-exp in base 2"),
    (
        "return x.unflatten(1, (k_bKnD.shape[1], -1)).flatten(2, 3)",
        "return x.unflatten(1, (-1, k_bKnD.shape[1])).transpose(1, 2).flatten(2, 3)",
        "heads dealt in turn, not in blocks",
    ),
    ("spans * heads * keys", "heads * keys", "a bound that forgets the spans"),
    ("q_bHmD.dtype, torch.float32", "q_bHmD.dtype, q_bHmD.dtype", "half precision left as it is"),
)

VARLEN = breaks(
    "maths/varlen.py",
    ("q, k, v, 0.0, spans.causal, scale=scale", "q, k, v, 0.0, False, scale=scale", "answers see their future"),
    ("*given, 0.0, spans.causal, scale=scale", "*given, 0.0, True, scale=scale", "backward always causal"),
    ("*given, 0.0, spans.causal, scale=scale", "*given, 0.0, spans.causal", "backward with the default scale"),
    (
        "kernels.forward(q, k, v, causal=spans.causal",
        "kernels.forward(q, k, v, causal=False",
        "answers see their future without a flash kernel",
    ),
    ("*given, causal=spans.causal", "*given, causal=True", "backward always causal without a flash kernel"),
    ("(torch.float16, torch.bfloat16))", "(torch.float16, torch.float32))", "float32 to CUDA's flash kernel"),
    ('device.type == "cpu" or', 'device.type != "cuda" or', "aten's CPU op on other devices"),
    ("lse_TH.shape[1]), torch.inf)", "lse_TH.shape[1]), 0.0)", "padded queries leak into gradients"),
    (
        "_fold(lse_padded, block.padded, block)",
        "_fold(lse_padded, block.query, block)",
        "padded queries read a real LSE",
    ),
    ("torch.arange(start, start + length)", "torch.arange(start, start + length).flip(0)", "places reversed"),
    ("return flat[order], order", "return flat[order], order.sort().values", "results out of order"),
    ("torch.cat(dvs).index_select(0, spans.key_at)", "torch.cat(dks).index_select(0, spans.key_at)", "dK for dV"),
    ("_similar(span[1]) if causal else span[3]", "span[1] if causal else span[3]", "a call for every length"),
)

ATTENTION = breaks(
    "maths/attention.py",
    ("(own_lse - joined).exp()[..., None]", "(seen_lse - joined).exp()[..., None]", "join weights swapped"),
    (
        "joined = torch.logaddexp(own_lse, seen_lse)",
        "joined = torch.maximum(own_lse, seen_lse)",
        "shares that do not add up to 1",
    ),
    ("lse[at] = joined", "lse[at] = own_lse", "backward without the joined LSE: value right, gradient wrong"),
    ("dq[plan.cross.query] += seen_dq", "dq[plan.cross.query] = seen_dq", "own share of dQ lost"),
    ("dk[plan.cross.key] += seen_dk", "dk[plan.cross.key] = seen_dk", "prefix's own share of dK lost"),
    ("dv[plan.cross.key] += seen_dv", "dv[plan.cross.key] -= seen_dv", "sign of dV"),
    ("prefix_dv[plan.cross.key] = seen_dv", "prefix_dv[plan.cross.key] = seen_dk", "dK for dV of a kept prefix"),
    (
        "cross.append((at, sum(answers), start, prefix))",
        "cross.append((at, max(answers, default=0), start, prefix))",
        "later answers do not see the prefix",
    ),
    (
        "cross.append((at, sum(answers), start, prefix))",
        "cross.append((at, sum(answers), start, prefix - 1))",
        "the prefix's last token unseen",
    ),
    (
        "queries=at, keys=keys, device=device) if cross",
        "queries=at, keys=keys, device=device) if cross[1:]",
        "a single group's answers do not see the prefix",
    ),
    ("width) * scale", "width)", "decode without the scale"),
    (
        "promote_types(q.dtype, torch.float32)",
        "promote_types(q.dtype, torch.bfloat16)",
        "decode with rounded scores",
    ),
    (".softmax(-1).to(q.dtype)", ".softmax(-1).to(torch.bfloat16).to(q.dtype)", "decode with rounded shares"),
    (">= prefix_length_N[:, None]", "> prefix_length_N[:, None]", "decode reads one padded key"),
    (
        ".reshape(rows, kv_heads, heads // kv_heads, width) * scale",
        ".reshape(rows, heads // kv_heads, kv_heads, width).transpose(1, 2) * scale",
        "heads dealt in turn, not in blocks",
    ),
    (
        "torch.cat([prefix_score, own_score], -1).softmax(-1)",
        "torch.cat([prefix_score.softmax(-1), own_score.softmax(-1)], -1)",
        "two softmaxes",
    ),
)

PACK = breaks(
    "maths/pack.py",
    ("[last] * bool(answer)", "[len(ids)] * bool(answer)", "first token predicted at the answer's own place"),
    ("int(prompt.position_3P.max()) + 1", "int(prompt.position_3P[0, -1]) + 1", "positions go on from the last token"),
    (
        "(next_position + torch.arange(len(fed)))",
        "(next_position + 1 + torch.arange(len(fed)))",
        "positions one too far",
    ),
    ("owner += [index] * len(answer)", "owner += [len(groups)] * len(answer)", "group for answer"),
    ("fed = answer[:-1]", "fed = answer[1:]", "tokens shifted by one"),
    ("visual[start:stop] = True", "visual[start : stop + 1] = True", "one visual token too many"),
    (
        "tuple(max(len(answer) - 1, 0) for answer in group)",
        "tuple(sorted(max(len(answer) - 1, 0) for answer in group))",
        "segments in another order than their tokens",
    ),
)

STATS = breaks(
    "maths/stats.py",
    ("z * z / (4 * n * n)", "z * z / (4 * n)", "Wilson's half width"),
    ("(value + z * z / (2 * n))", "(value + z * z / n)", "Wilson's centre"),
    ("inv_cdf((1 + confidence) / 2)", "inv_cdf(confidence)", "one-sided"),
    ("stdev(values) / sqrt(len(values))", "stdev(values) / sqrt(len(values) - 1)", "standard error"),
    ("[b - a for a, b in", "[a - b for a, b in", "before minus after"),
    (
        "[b - a for a, b in zip(before, after, strict=True)]",
        "[b - a for a, b in zip(sorted(before), sorted(after), strict=True)]",
        "pairs torn apart",
    ),
    ("len(differences) + 2", "len(differences)", "pseudo-pairs counted in the cells only"),
    ("sum(map(abs, differences)) + 1", "sum(map(abs, differences))", "pseudo-pairs that never change side"),
    ("changed - net * net / n", "changed", "the mean's square left in the variance"),
    ("min(net / n + half, 1.0)", "net / n + half", "a difference above 1"),
    ("not {*before, *after} <= {0, 1}", "not {*before, *after} <= {0, 0.25, 0.5, 1}", "other values as outcomes"),
)

MUTANTS = ADVANTAGE + LOSS + ALGORITHMS + LOGPROB + KERNELS + VARLEN + ATTENTION + PACK + STATS
