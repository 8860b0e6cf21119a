"""Breaks of learning from pairs and of PPO: rows, reference, experience, adapters beside the first; see mutants_table.

Most must show in the plain twins of a step.
"""

from __future__ import annotations

from tests.mutants_table import breaks

PAIRS = "train/test_pairs.py::test_"
TWO_ROWS = f"{PAIRS}a_pair_on_one_prefix_is_two_rows"
REFERENCE = f"{PAIRS}the_reference_is_what_each_answer_alone_says[lora]"
LONGEST = f"{PAIRS}the_longest_answer_is_of_both_sides_of_all_pairs"
DPO = "recipes/test_dpo_twin.py"
PPO = "recipes/test_ppo_twin.py::test_"
STEP = f"{PPO}a_step_is_what_plain_loops_make_of_it"
TESTS = {  # which tests must notice a break in which file
    "models/heads.py": ("models/test_heads.py", f"{STEP}[lora]"),
    "recipes/dpo.py": (DPO,),
    "recipes/ppo.py": (f"{STEP}[lora]", f"{STEP}[nothing whitened]"),
    "runtime/beside.py": ("runtime/test_beside.py",),
    "train/ppo.py": (f"{PPO}a_checkpoint_brings_its_own_value_model", f"{STEP}[from an adapter]", f"{STEP}[lora]"),
    "train/preference.py": (REFERENCE, f"{PAIRS}pairs_on_one_film_are_neighbours[lora]", LONGEST, DPO),
    "train/rows.py": (
        f"{TWO_ROWS}[alora-dpo]",
        f"{TWO_ROWS}[lora-simpo]",
        f"{PAIRS}gradients_through_prefixes_are_drawn_by_film",
        REFERENCE,
    ),
}

ROWS = breaks(
    "train/rows.py",
    ("[item.old or tuple(", "[tuple(", "the reference forgotten"),
    ("[item.weights for item in items]", "[[[1.0] * len(x) for x in item.ids] for item in items]", "no weights"),
    ("old, lead=lead(model))", "old)", "an aLoRA's header in the prefix"),
    (", made, scale, ranks)", ", made, 1.0, ranks)", "the scale of prefixes forgotten"),
    ("sums += backward(", "sums = backward(", "the last row's sums"),
    ("for _ in item.ids] for item in run]", "for _ in item.ids][::-1] for item in run]", "chosen and rejected swapped"),
    (
        "_runs(session, items, row_tokens)[ranks",
        "_runs(session, items[:1], row_tokens)[ranks",
        "one pair",
    ),
    ("budget):\n            yield run\n", "budget):\n            pass\n", "rows that do not fit are lost"),
)

PREFERENCE = breaks(
    "train/preference.py",
    ("tuple((total / len(own),) * len(own)", "tuple((total,) * len(own)", "the reference once a token"),
    ("float(chosen.double().sum())", "float(chosen.double().mean())", "means for sums"),
    ("for text in (pair.chosen, pair.rejected))", "for text in (pair.rejected, pair.chosen))", "the worse is chosen"),
    ("in [pair.chosen, pair.rejected])", "in [pair.chosen])", "how long the worse are is not known"),
    ("session.progress.taken, self.size)", "0, self.size)", "the same pairs in every step"),
    (
        "return sorted(picked, key=lambda pair: first[look(pair, self.video, self.seed).seen()])",
        "return picked",
        "films apart that could share a prefix",
    ),
    ("if any(pair.id not in known for pair in part):", "if True:", "the reference computed again"),
    ("if missing and session.progress.step:", "if False:", "a reference of later weights"),
    ("every = [*self.learned, *self.held]", "every = [*self.learned]", "held-out pairs without a reference"),
    ('keyed(seed, "held out", _film(', 'keyed(seed, "held out", pair.id, _film(', "one film on both sides"),
)

EXPERIENCE = breaks(
    "train/ppo.py",
    (
        'using("reference" if "reference" in model.adapter.others else None)',
        "using(None)",
        "the bare base as reference of an adapter's run",
    ),
    (
        'using("reference" if "reference" in model.adapter.others else None)',
        'using("default")',
        "the policy as its own reference",
    ),
    (", temperature=heat)", ")", "the reference at another temperature"),
    ('with model.adapter.using("value"):', "with model.adapter.off():", "the base's values"),
    ("if credit.whiten:", "if False:", "advantages as they are"),
    ("if credit.whiten_rewards:", "if False:", "rewards as they are"),
    ("whiten(reward_R, shift_mean=False)", "whiten(reward_R)", "rewards' mean lost"),
    ('answer.finish == "stop" for', 'answer.finish != "stop" for', "those that ended are punished"),
    (
        "(advantage_R, logprob_R, return_R, value_R)",
        "(advantage_R, reference_R, return_R, value_R)",
        "ratio to the start",
    ),
    (
        "(advantage_R, logprob_R, return_R, value_R)",
        "(advantage_R, logprob_R, value_R, return_R)",
        "returns for values",
    ),
    ('"k1").sum()) / len(flat)', '"k1").sum()) / len(logprob_R)', "the KL of a token, not of an answer"),
    (
        'checkpoint / "value" if checkpoint else find(reward)',
        "find(reward)",
        "a resumed run's value model begins again",
    ),
    ("find(reward), trainable=True", "find(reward), trainable=False", "the value model learns nothing"),
    ("next(parts).tolist()", "next(parts).flip(0).tolist()", "numbers of an answer backwards"),
)

GOALS = breaks(
    "train/step.py",
    ("passes.answer_tokens, objective.together,", "passes.answer_tokens, 1,", "a pair parted"),
    ("terms.total * self.weight", "terms.total", "the value loss unweighed"),
    ("model.heads[self.head](hidden_RE)", "[*model.heads.values()][-1](hidden_RE)", "another adapter's head"),
    ("every]).argsort(stable=True)", "every]).argsort(descending=True)", "answers read in another order"),
    ("self.watched.get(name, 0.0) + other", "other", "watched in the last row alone"),
    ("value / (self.tokens or math.nan)", "value", "sums for means"),
    (
        "if terms.total.requires_grad:",
        "if terms.total.requires_grad and not terms.watched:",
        "losses that watch more learn nothing",
    ),
)

HEADS = breaks(
    "models/heads.py",
    (", self.bias[None])", ")", "the bias forgotten"),
    ("/ math.sqrt(width + 1)", "", "a head that begins too wide"),
    ("torch.promote_types(model.net.dtype, torch.float32)", "model.net.dtype", "scores in half precision"),
    ("if name == NAME or head.weight.requires_grad:", "if True:", "the frozen saved as well"),
    ("folder if name == NAME else folder / name", "folder", "one head over the other"),
    ("    head.requires_grad_(trainable)\n", "", "the frozen learns"),
    ("manual_seed(seed)", "manual_seed(0)", "every head begins alike"),
)

BESIDE = breaks(
    "runtime/beside.py",
    ("if own not in (base_name, str(base.resolve())):", "if False:", "another base's adapter"),
    ("folder, saved, trainable=trainable)", "folder, saved, trainable=True)", "the frozen adapter learns"),
    ("folder, name, trainable=trainable)", "folder, name, trainable=True)", "the frozen head learns"),
    ("if not (folder / adapter_files.CONFIG).is_file():", "if False:", "a whole model beside"),
)

PAIR_STEPS = breaks(
    "recipes/dpo.py",
    ("smoothing=config.smoothing or 0.0", "smoothing=0.0", "smoothing without effect"),
    ("loss.dpo, beta=config.beta", "loss.dpo, beta=0.1", "DPO's beta without effect"),
    ("loss.ipo, beta=config.beta", "loss.ipo, beta=0.1", "IPO's beta without effect"),
    ("0.5 if config.gamma is None else config.gamma", "0.5", "gamma without effect"),
    ("together=2)", "together=1)", "pairs parted"),
    ("session.step(sums.tokens,", "session.step(1.0,", "the summed gradient undivided"),
    ("session.progress.taken + config.batch", "session.progress.taken + 1", "the walk over pairs"),
    ('asks = config.loss != "simpo"', "asks = False", "no reference"),
    ('1 if config.loss == "dpo" else len(ids)', "len(ids)", "DPO's held-out margin a token's"),
    ('1 if config.loss == "dpo" else len(ids)', "1", "IPO's held-out margin an answer's"),
    ("config.beta * (chosen - rejected)", "config.beta * (rejected - chosen)", "right and wrong swapped"),
)

PPO_STEPS = breaks(
    "recipes/ppo.py",
    ("on_policy=False, temperature=config.temperature)", "on_policy=False)", "the update forgets the temperature"),
    ("(config.temperature,) * config.group_size", "(1.0,) * config.group_size", "sampling forgets the temperature"),
    ("clip_low=low, clip_high=high", "clip_low=high, clip_high=low", "clip bounds swapped"),
    ("clip=config.value.clip", "clip=0.2", "the values' clip without effect"),
    ("weight=config.value.weight", "weight=1.0", "the value loss unweighed"),
    ('with session.model.adapter.using("value"):', "with session.model.adapter.off():", "values of the base"),
    ("for _ in range(config.epochs):", "for _ in range(1):", "one pass"),
    ("session.step(count,", "session.step(len(policy),", "the gradient divided by questions"),
    ("len(answered.groups) * config.group_size)", "len(answered.groups))", "the KL's weight moves too little"),
    ("own.unfinished, own.length,", "own.length, own.unfinished,", "penalties swapped"),
    ("value.discount, value.lam,", "value.lam, value.discount,", "discount and lambda swapped"),
    ("answered, weight.beta, credit", "answered, config.kl.beta, credit", "an adaptive weight without effect"),
)

MUTANTS = ROWS + PREFERENCE + EXPERIENCE + GOALS + HEADS + BESIDE + PAIR_STEPS + PPO_STEPS
