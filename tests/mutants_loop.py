"""Breaks of the training loops; most must show in the plain twins of a step. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

TWIN, DRAWN = "recipes/test_twin.py", "recipes/test_draws.py"
OFF = f"{TWIN}::test_a_policy_step_is_what_plain_loops_make_of_it"
ON = f"{TWIN}::test_one_forward_is_what_plain_loops_make_of_it"
DRAWS = f"{DRAWN}::test_no_two_answers_share_their_randomness"
REFILLS = f"{DRAWN}::test_refills_end_when_enough_groups_differ_and_no_more_are_learned_from"
PREFIXES = f"{DRAWN}::test_gradients_through_prefixes_are_drawn_for_every_step_and_prefix"
TAUGHT = f"{TWIN}::test_a_supervised_step_is_what_plain_loops_make_of_it"
BAD = f"{TWIN}::test_five_steps_without_a_finite_gradient_end_the_run"
CHECK = "train/test_selfcheck.py"
TESTS = {  # which tests must notice a break in which file
    "eval/command.py": ("eval/test_looks.py",),
    "recipes/difficulty.py": (f"{TWIN}::test_difficulty_counts_right_answers_at_its_temperature",),
    "recipes/grpo.py": (f"{ON}[dr_grpo-layers]", f"{ON}[longtake-graph]", OFF, DRAWS, REFILLS),
    "recipes/sft.py": (TAUGHT,),
    "train/keys.py": ("train/test_keys.py",),
    "train/policy.py": ("train/test_policy.py", f"{ON}[longtake-graph]", PREFIXES, f"{OFF}[longtake]", DRAWS, REFILLS),
    "train/selfcheck.py": (
        f"{CHECK}::test_paths_that_agree[full-layers-24]",
        f"{CHECK}::test_paths_that_agree[alora-graph-2048]",
        f"{CHECK}::test_a_wrong_value_alone_is_found[full]",
        f"{CHECK}::test_a_wrong_gradient_is_found[full]",
    ),
    "train/passes.py": (PREFIXES,),
    "train/session.py": (TAUGHT, PREFIXES, BAD),
    "train/step.py": (  # its breaks are here and in mutants_feedback
        "train/test_pairs.py::test_a_pair_on_one_prefix_is_two_rows[lora-dpo]",
        "train/test_pairs.py::test_the_reference_is_what_each_answer_alone_says[lora]",
        "train/test_step.py",
        TAUGHT,
        f"{ON}[dr_grpo-layers]",
        "recipes/test_dpo_twin.py::test_a_step_is_what_two_rows_make_of_every_pair[dpo-lora]",
        "recipes/test_ppo_twin.py::test_a_step_is_what_plain_loops_make_of_it[lora]",
    ),
    "train/supervised.py": (TAUGHT, f"{DRAWN}::test_supervised_learning_draws_prefixes_too"),
}

GRPO = breaks(
    "recipes/grpo.py",
    ("on_policy, config.temperature)", "on_policy)", "the update forgets the temperature"),
    ("(config.temperature,) * config.group_size", "(1.0,) * config.group_size", "sampling forgets the temperature"),
    ("on_policy = config.epochs == config.minibatches == 1", "on_policy = True", "no ratio in later passes"),
    ("if on_policy and algorithm.scale else", "if algorithm.scale else", "one pass whatever was asked for"),
    ("algorithm.centred(policy.shaped(part", "algorithm.advantage(policy.shaped(part", "scaled by batches as well"),
    (
        "algorithm.centred(policy.shaped(part, config.max_tokens, config.overlong))",
        "algorithm.centred(part.reward_NG)",
        "no length penalty",
    ),
    (
        "algorithm.scale(policy.shaped(kept, config.max_tokens, config.overlong))",
        "algorithm.scale(kept.reward_NG)",
        "the scale of rewards without their penalty",
    ),
    (
        "reward_NG = policy.shaped(kept, config.max_tokens, config.overlong)",
        "reward_NG = kept.reward_NG",
        "no length penalty off-policy",
    ),
    ("session.step(count / scale,", "session.step(count * scale,", "the scale upside down"),
    ("session.step(count / scale,", "session.step(count,", "the scale forgotten"),
    ("count += weights.count", "count = weights.count", "the last batch's count"),
    ("session.step(weights.count,", "session.step(1.0,", "the summed gradient undivided"),
    ("max_tokens=config.max_tokens\n", "max_tokens=1\n", "Dr. GRPO's constant"),
    ("max_tokens=config.max_tokens)\n", "max_tokens=1)\n", "Dr. GRPO's constant off-policy"),
    ("config.epochs, config.minibatches):", "1, config.minibatches):", "one pass"),
    ("config.epochs, config.minibatches):", "config.epochs, 1):", "one mini-batch"),
    ("config.questions - len(kept.looks)", "config.questions", "refills beyond a step's groups"),
    ("memory.row_tokens, config.seed,", "memory.row_tokens, 0,", "the seed forgotten"),
)

SFT = breaks(
    "recipes/sft.py",
    ("session.step(count, optim", "session.step(1.0, optim", "the summed gradient undivided"),
    ("taken=session.progress.taken + len(batch)", "taken=session.progress.taken + 1", "the walk over rows"),
)

DIFFICULTY = breaks(
    "recipes/difficulty.py",
    ("[config.temperature] * config.answers", "[1.0] * config.answers", "the temperature forgotten"),
    (
        "score.correct is True for score in scores) / config",
        "score.correct is True for score in scores[:1]) / config",
        "one answer counted",
    ),
)

EVAL = breaks(
    "eval/command.py",
    ("config.video.merged(question.policy, policy)", "policy", "a row's own window forgotten"),
    ("if question.video is not None or not control", "", "questions without a film in the controls"),
)

STEP = breaks(
    "train/step.py",
    ("temperature=self.temperature", "temperature=1.0", "the temperature forgotten"),
    ("terms.total.backward()", "(terms.total / 2).backward()", "value right, half the gradient"),
    ("if self.on_policy else row.old_logprob_R", "", "the ratio is always 1"),
    ("for part in parts:", "for part in parts[:1]:", "answers beyond the first run lost"),
    ("sums += _answers(", "sums = _answers(", "the last run's sums"),
    ("finish(model, made, scale", "finish(model, made, 1.0", "the scale of prefixes forgotten"),
    ("return 1 / p if", "return 1.0 if", "1/p forgotten"),
    ("< p * 2**63", "< p * 2**64", "prefixes drawn twice as often"),
    ('(self.seed, "prefix gradient", *key)', '("prefix gradient", *key)', "the same prefixes under every seed"),
    ('self.of(tokens) if self.scale(*key) else "nothing"', "self.of(tokens)", "room for a backward that does not come"),
    ("torch.where(row.weight_R != 0, scored.entropy_R, 0)", "scored.entropy_R", "entropy of tokens out of the loss"),
    ("gradient.div_(count)", "gradient.div_(1.0)", "the summed gradient undivided"),
    ('group["lr"] = lr', "pass", "the optimizer's first rate for ever"),
    ("clip_(params, max_norm)", "clip_(params[:1], max_norm)", "some weights clipped"),
    ("optimizer.zero_grad(set_to_none=True)", "", "gradients of the step before"),
    ("betas=betas", "betas=(0.9, 0.999)", "torch's own betas"),
    ("weight_decay=weight_decay", "weight_decay=0.01", "torch's own decay"),
    ("0 if math.isfinite(norm) else bad + 1", "bad if math.isfinite(norm) else bad + 1", "bad steps never forgiven"),
    ("if bad >= MOST_BAD", "if bad > MOST_BAD", "one bad step more"),
)

POLICY = breaks(
    "train/policy.py",
    (
        "tuple(answer.logprob for answer in group.answers)",
        "tuple((0.0,) * len(answer.ids) for answer in group.answers)",
        "old log-probabilities of 0",
    ),
    (
        "if not algorithm.drop_equal:\n        return answered",
        "if False:\n        return answered",
        "equal groups always dropped",
    ),
    (
        "if not algorithm.drop_equal:\n        return answered",
        "if True:\n        return answered",
        "equal groups never dropped",
    ),
    (
        "[place < most for place in range(len(mixed.looks))]",
        "[True for place in range(len(mixed.looks))]",
        "refills beyond a step's groups",
    ),
    ('"answers", session.progress.step, number)', '"answers", session.progress.step)', "a refill repeats its answers"),
    ('"answers", session.progress.step, number)', '"answers", number)', "every step repeats its answers"),
    ("advantage_NG[start : start + size]", "algorithm.advantage(part.reward_NG)", "advantages of a mini-batch"),
    ("answered.reward_NG + overlong_penalty", "answered.reward_NG - overlong_penalty", "length rewarded"),
    (
        "zip(weight_G, group.answers, strict=True)\n        ),",
        "zip(weight_G[::-1], group.answers, strict=True)\n        ),",
        "weights of other answers",
    ),
    ("taken=taken + self.count", "taken=taken", "the same questions again"),
    ("found += len(differing(new).looks)", "found += len(new.looks)", "no refill"),
    ("if found >= self.count", "if found > self.count", "a refill too many"),
    ("kept.made, scale, session", "kept.made, 1.0, session", "the scale of kept prefixes forgotten"),
    ("(session.progress.step, kept.groups[0]", "(kept.groups[0]", "every step draws the same prefixes"),
    (
        "if kept.made and any(id(group) in learned for group in kept.groups)]",
        "if kept.made]",
        "prefills of dropped groups go through",
    ),
    (
        "passes.kept(sum(len(p.ids) for p in own) // size, step, own[0].prefix)",
        "passes.keep",
        "room for a backward that does not come",
    ),
    (
        "known = [own for own in right_N if None not in own]",
        "known = right_N",
        "questions without an answer count as wrong",
    ),
    (
        'len(known) if known else math.nan,\n        "groups_all_wrong',
        'len(known) if known else 0.0,\n        "groups_all_wrong',
        "no number becomes 0",
    ),
    ("if (value := row[name]) is not None", "if (value := row[name] or 0.0) is not None", "no number becomes 0"),
    ("if not isinstance(algorithm.loss, partial) and not on_policy", "if False", "rloo with epochs"),
    ("if refill and not algorithm.drop_equal", "if False", "a refill without effect"),
)

KEYS = breaks(
    "train/keys.py",
    ('"\\x1f".join', '"".join', "keys that run together"),
    ('keyed(seed, "order", epoch)', 'keyed(seed, "order")', "every epoch in the same order"),
    ('keyed(seed, "order", epoch)', 'keyed("order", epoch)', "the seed forgotten"),
    ("taken % rows + count <= rows", "taken % rows + count < rows", "a whole epoch does not fit"),
    ("taken % rows + count <= rows", "taken % rows < rows", "a batch crosses an epoch's border"),
    ("(taken // rows + 1) * rows", "taken // rows * rows", "the same epoch again"),
    ("_order(seed, epoch, count)[item] if shuffle else item", "_order(seed, epoch, count)[item]", "always shuffled"),
)

SELFCHECK = breaks(
    "train/selfcheck.py",
    ("share <= bound and found", "found", "a wrong gradient passes"),
    ("share <= bound and found.logprob <= 10 * bound", "share <= bound", "wrong values pass"),
    ("torch.float64: 1e-9", "torch.float64: 1.0", "a bound for everything"),
    ("share = left / norm if norm else 0.0", "share = 0.0", "gradients not compared"),
    ("    _clear(params)\n    share", "    share", "what is left of the check goes into the first step"),
    ("keep_P[PROMPT - end : count - end]", "keep_P[PROMPT - end : count - end + 1]", "a token more cut than said"),
    ("if len(answer)][:ANSWERS]", "if len(answer)]", "more answers than said"),
)

SESSION = breaks(
    "train/session.py",
    ("optim.betas, optim.weight_decay", "(0.9, 0.999), optim.weight_decay", "betas do not reach the optimizer"),
    ("optim.betas, optim.weight_decay", "optim.betas, 0.0", "the decay does not reach the optimizer"),
    ("optim.rate(self.progress.step, steps)", "optim.lr", "no schedule"),
    (
        "optim.rate(self.progress.step, steps)",
        "optim.rate(self.progress.step + 1, steps)",
        "the schedule one step ahead",
    ),
    ("max_norm=optim.max_grad_norm", "max_norm=1e9", "no clip of the gradient's norm"),
    ("self.bad = count_bad(norm, self.bad)", "self.bad = 0", "bad steps for ever"),
    ("part.requires_grad_(train_vision)", "part.requires_grad_(True)", "the tower is always trained"),
)
PASSES = breaks(
    "train/passes.py",
    (
        "probability(prefix_gradient), seed, most)",
        "probability(prefix_gradient), 0, most)",
        "the seed forgotten for prefixes",
    ),
    ("probability(prefix_gradient), seed, most)", "1.0, seed, most)", "every prefix has its gradient"),
)

SUPERVISED = breaks(
    "train/supervised.py",
    ("fsum(weight for item", "fsum(1.0 for item", "tokens counted, not weights"),
    ("for item in items for own", "for item in items[-1:] for own", "the last row's weights counted"),
)

MUTANTS = GRPO + SFT + DIFFICULTY + EVAL + STEP + POLICY + KEYS + SELFCHECK + SESSION + PASSES + SUPERVISED
