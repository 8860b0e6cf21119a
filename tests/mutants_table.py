"""Breaks of one file each: the text that occurs once in it, what takes its place, and what that means.

Here: what the numbers of a step are made of, and the cost model. mutants_core: attention and packing; mutants_prefix:
prefixes, caches, answers; mutants_loop: training.
"""

from __future__ import annotations

from typing import NamedTuple

TESTS = {  # which tests must notice a break in which file
    "maths/advantage.py": ("maths/test_advantage.py",),
    "maths/algorithms.py": ("maths/test_algorithms.py",),
    "maths/cost.py": ("maths/test_cost.py",),
    "maths/devices.py": ("maths/test_cost.py::test_float32_is_slow_on_a_gpu_and_all_there_is_on_a_cpu",),
    "maths/knobs.py": (
        "maths/test_room.py::test_savings_are_differences_and_what_trains_the_same_comes_first",
        "maths/test_room.py::test_only_what_can_be_turned_is_offered",
    ),
    "maths/logprob.py": ("maths/test_logprob.py",),
    "maths/loss.py": ("maths/test_loss.py",),
    "maths/room.py": ("maths/test_room.py",),
    "maths/shapes.py": ("maths/test_network_shapes.py",),
    "maths/stats.py": ("maths/test_stats.py",),
}


class Mutant(NamedTuple):
    file: str  # in src/longtake
    old: str
    new: str
    why: str
    tests: tuple[str, ...] = ()  # that must notice it; () = those of its file


def breaks(file: str, *lines: tuple[str, str, str], tests: tuple[str, ...] = ()) -> tuple[Mutant, ...]:
    return tuple(Mutant(file, *line, tests) for line in lines)


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
        '"grpo", _by_group, _token_clip, "per answer mean"',
        '"grpo", _by_group, _token_clip, "batch tokens"',
        "GRPO with DAPO's token mean",
    ),
    (
        '"dapo", _by_group, _clip_higher, "batch tokens", True',
        '"dapo", _by_group, _clip_higher, "batch tokens", False',
        "equal groups counted",
    ),
    ("else centred_NG * self.scale(reward_NG)", "else centred_NG", "the scale forgotten"),
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

COST = breaks(
    "maths/cost.py",
    (
        "(4 if self.backward and self.way.adapter",
        "(2 if self.backward and self.way.adapter",
        "the head's weights learn",
    ),
    ('+ moved if way.keep in ("attention", "layers", "host") else 0.0', "+ moved", "a kept graph computed again"),
    ("(10 if self.backward else 4)", "(8 if self.backward else 4)", "attention's backward"),
    ("(self.question * self.visual + self.question**2 / 2)", "(self.question**2 / 2)", "questions do not see the film"),
    ("layers = self.shape.layers - 1\n", "layers = self.shape.layers\n", "the last layer's outputs"),
    ("min(row.tokens, together) > SLICE", "row.tokens > SLICE * together", "slices not computed again"),
    ('0.0 if way.mode == "encode_once" else', "", "films of single rows encoded once"),
    ("way.through * (noted", "(noted", "the probability of a prefix gradient"),
    ("max(multiplied, (body", "min(multiplied, (body", "the smaller of reading and arithmetic"),
    ("ceil(row.tokens / together)", "ceil(row.tokens)", "a call for every token"),
)

ROOM = breaks(
    "maths/room.py",
    ("learned * 3 * item", "learned * 2 * item", "one moment"),
    ('(added if keep != "nothing" else 0)', "added", "gradients of keys without a backward"),
    ("stream = 4 if tiled else 8 if half else 6", "stream = 4 if tiled else 6", "float32 norms of half precision"),
    ("((5 if half else 4) if shape.normed else 2)", "2", "norms of queries and keys"),
    ("inputs = films * tokens", "inputs = tokens", "one film's inputs"),
    ("need.peak <= USABLE * device and need.host", "need.peak <= USABLE * device or need.host", "one memory is enough"),
    ("next(found, order[-1])", "next(iter(order))", "the fastest whether or not it fits"),
)

SHAPES = breaks(
    "maths/shapes.py",
    ("(3 if kind.startswith(GATED_TOWERS) else 2)", "2", "gated towers"),
    ("(1 if self.tied else 2)", "2", "tied embeddings counted twice"),
    ("2 * self.layers * self.kv_heads", "2 * self.layers * self.heads", "keys of all heads"),
    ("(1 + levels) * merger", "merger", "DeepStack's mergers"),
    ("(self.heads + 2 * self.kv_heads)", "(self.heads + self.kv_heads)", "values forgotten"),
    ('tied = bool(config.get("tie_word_embeddings", nested', 'tied = bool(nested.get("no", nested', "tied elsewhere"),
)

DEVICES = breaks(
    "maths/devices.py",
    ("if item < 4:", "if item < 8:", "float32 as fast as half precision"),
    ("linear=slow, attend", "attend", "matrix products in float32 as fast as in half"),
    ("CORE * max(1, cores)", "CORE", "one core"),
)

KNOBS = breaks(
    "maths/knobs.py",
    ("whole - need, whole_s - seconds", "need - whole, whole_s - seconds", "costs for savings"),
    ("whole_s - seconds)", "seconds - whole_s)", "slower for faster"),
    ("(not saving.knob.same, -saving.bytes)", "(-saving.bytes,)", "what trains differently comes first"),
    ("need.at(phase) if phase else need.peak", "need.peak", "the peak for the phase"),
    ('if way.through and way.keep in ("graph", "attention"):', 'if way.keep != "layers":', "a setting without effect"),
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

MUTANTS = ADVANTAGE + LOSS + ALGORITHMS + LOGPROB + COST + ROOM + SHAPES + DEVICES + KNOBS + STATS
