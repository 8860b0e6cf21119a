"""Breaks of the training loops, the engine and what feeds them; most must show in the plain twins of a step."""

from __future__ import annotations

from tests.mutants_table import breaks

TWIN = ("recipes/test_twin.py",)
TESTS = {  # which tests must notice a break in which file
    "engines/local.py": TWIN,
    "eval/command.py": ("eval/test_looks.py",),
    "recipes/difficulty.py": TWIN,
    "recipes/grpo.py": TWIN,
    "recipes/sft.py": TWIN,
    "runtime/features.py": ("runtime/test_features.py::test_films_go_through_the_tower_a_few_pixels_at_a_time", *TWIN),
    "train/keys.py": ("train/test_keys.py",),
    "train/policy.py": ("train/test_policy.py", *TWIN),
    "train/session.py": TWIN,
    "train/step.py": ("train/test_step.py::test_five_steps_without_a_finite_gradient_end_the_run", *TWIN),
    "train/supervised.py": TWIN,
}

GRPO = breaks(
    "recipes/grpo.py",
    ("bad = count_bad(norm, bad)", "bad = 0", "bad steps for ever"),
    ("temperature=config.temperature,", "temperature=1.0,", "the update forgets the temperature"),
    ("(config.temperature,) * config.group_size", "(1.0,) * config.group_size", "sampling forgets the temperature"),
    ("optim.rate(step, config.steps)", "optim.lr", "no schedule"),
    ("optim.rate(step, config.steps)", "optim.rate(step + 1, config.steps)", "the schedule one step ahead"),
    ("max_norm=optim.max_grad_norm", "max_norm=1e9", "no clip of the gradient's norm"),
    ("count=weights.count", "count=1.0", "the summed gradient undivided"),
    ("max_tokens=config.max_tokens\n", "max_tokens=1\n", "Dr. GRPO's constant"),
    ("on_policy = config.epochs == config.minibatches == 1", "on_policy = True", "no ratio in later passes"),
    ("overlong(kept, config.max_tokens, config.overlong)", "overlong(kept, config.max_tokens, 0)", "no length penalty"),
    ("config.epochs, config.minibatches\n", "1, config.minibatches\n", "one pass"),
    ("config.epochs, config.minibatches\n", "config.epochs, 1\n", "one mini-batch"),
    ("max_tokens, config.seed,", "max_tokens, 0,", "the seed forgotten"),
)

SFT = breaks(
    "recipes/sft.py",
    ("bad = count_bad(norm, bad)", "bad = 0", "bad steps for ever"),
    ("optim.rate(step, config.steps)", "optim.lr", "no schedule"),
    ("max_norm=optim.max_grad_norm", "max_norm=1e9", "no clip of the gradient's norm"),
    ("count=count", "count=1.0", "the summed gradient undivided"),
    ("taken=session.progress.taken + len(batch)", "taken=session.progress.taken + 1", "the walk over rows"),
    ("shuffle=config.shuffle", "shuffle=True", "always shuffled"),
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
    ("row.target_R, temperature=temperature)", "row.target_R, temperature=1.0)", "the temperature forgotten"),
    (
        "hidden_TE[row.predict_R]",
        "hidden_TE.detach()[row.predict_R] * 0.5 + hidden_TE[row.predict_R] * 0.5",
        "value right, half the gradient",
    ),
    ("if on_policy else row.old_logprob_R", "", "the ratio is always 1"),
    ("gradient.div_(count)", "gradient.div_(1.0)", "the summed gradient undivided"),
    ('group["lr"] = lr', "pass", "the optimizer's first rate for ever"),
    ("clip_grad_norm_(params, max_norm)", "clip_grad_norm_(params[:3], max_norm)", "some weights clipped"),
    ("optimizer.zero_grad(set_to_none=True)", "", "gradients of the step before"),
    ("betas=betas", "betas=(0.9, 0.999)", "torch's own betas"),
    ("weight_decay=weight_decay", "weight_decay=0.01", "torch's own decay"),
    ("0 if math.isfinite(norm) else bad + 1", "bad if math.isfinite(norm) else bad + 1", "bad steps never forgiven"),
    ("if bad >= MOST_BAD", "if bad > MOST_BAD", "one bad step more"),
    (
        "if run and sum(map(length, run)) + length(item) > budget:\n            yield run\n",
        "if run and sum(map(length, run)) + length(item) > budget:\n            pass\n",
        "rows that do not fit are lost",
    ),
)

POLICY = breaks(
    "train/policy.py",
    (
        "[answer.logprob for answer in group.answers]",
        "[(0.0,) * len(answer.ids) for answer in group.answers]",
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
    ('(self.seed, "answers", step, draw)', '(self.seed, "answers", step)', "a refill repeats its answers"),
    ('(self.seed, "answers", step, draw)', '(self.seed, "answers", draw)', "every step repeats its answers"),
    ("advantages(kept, algorithm, penalty_NG)\n", "advantages(kept, algorithm, None)\n", "the penalty forgotten"),
    ("advantage_NG[start : start + size]", "algorithm.advantage(part.reward_NG)", "advantages of a mini-batch"),
    ("answered.reward_NG + penalty_NG", "answered.reward_NG - penalty_NG", "length rewarded"),
    (
        "[[weight] * len(answer.ids) for weight, answer in zip(own,",
        "[[weight] * len(answer.ids) for weight, answer in zip(own[::-1],",
        "weights of other answers",
    ),
    ("on_policy=on_policy, temperature=temperature)", "on_policy=on_policy)", "the temperature forgotten"),
    ("asked = new if asked is None else asked + new", "asked = new", "what was asked before a refill is lost"),
    ("taken += self.count", "taken += 0", "the same questions again"),
    ("if len(differing(asked).looks) >= self.count", "if len(asked.looks) >= self.count", "no refill"),
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
    ("is policy_gradient and not on_policy", "is None and not on_policy", "rloo with epochs"),
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

SESSION = breaks(
    "train/session.py",
    ("optim.betas, optim.weight_decay", "(0.9, 0.999), optim.weight_decay", "betas do not reach the optimizer"),
    ("optim.betas, optim.weight_decay", "optim.betas, 0.0", "the decay does not reach the optimizer"),
    ("part.requires_grad_(train_vision)", "part.requires_grad_(True)", "the tower is always trained"),
)

SUPERVISED = breaks(
    "train/supervised.py",
    ("count += float(row.weight_R.sum())", "count += len(row.weight_R)", "tokens counted, not weights"),
    ("count += float(row.weight_R.sum())", "count = float(row.weight_R.sum())", "the last row's weights counted"),
    ("(*weights, spans[-1].weight)", "(*weights, 1.0)", "the end token's weight"),
    ("return (*ids, end), (*weights, spans[-1].weight)", "return tuple(ids), tuple(weights)", "no end token"),
    (
        "for piece, weight in pieces for _ in piece]",
        "for piece, _ in pieces for weight in [spans[0].weight] * len(piece)]",
        "the first span's weight",
    ),
    ("if len(taken) == size or (", "if len(taken) == (size or 0) + 1 or (", "a question too many"),
    ("[each.weights for each in run]", "[[[1.0] * len(ids) for ids in each.ids] for each in run]", "no weights"),
)

ENGINE = breaks(
    "engines/local.py",
    ("int(p.position_3P.max()) + 1 for", "int(p.position_3P.max()) for", "positions of answers one too low"),
    ("(position + step).expand", "(position + step + 1).expand", "positions one too high after the first token"),
    ("(chance_A * share_AV[:, -1])[:, None]", "(0.5 * share_AV[:, -1])[:, None]", "the draw forgotten"),
    ("chance_At[:, step])", "chance_At[:, 0])", "one draw an answer"),
    ("if token in self.model.end_ids", "if token == self.model.end_ids[0]", "answers not cut at their end token"),
    ("kept[:-1] if end else kept", "kept", "the end token in the text"),
    (
        "(logits / torch.where(heat_A1 > 0, heat_A1, 1)).log_softmax",
        "logits.log_softmax",
        "log-probabilities at temperature 1",
    ),
    ("logits_AV.double() / heat_A1.clamp(min=1e-6)", "logits_AV.double()", "drawn at temperature 1"),
    ("Philox(key=draw.seed)", "Philox(key=len(draws))", "the seed forgotten"),
    ("repeat_interleave(per_prompt, 0)\n", "repeat(per_prompt, 1)\n", "answers dealt in turn"),
    ("for prompt in prompts]).cumsum(0) - 1", "for prompt in prompts]).cumsum(0) - 2", "the token before the last"),
    ('"stop" if end else "length"', '"length"', "who ended is not known"),
)

FEATURES = breaks(
    "runtime/features.py",
    (
        "torch.cat([film.level_LNE for film in films], dim=1)",
        "torch.cat([film.level_LNE for film in films[::-1]], dim=1)",
        "films in the wrong order",
    ),
    ("embed_TE = model.embed(ids_T)\n", "embed_TE = model.embed(ids_T).detach()\n", "no gradient into embeddings"),
    ("level_LNE[1:] if len(level_LNE) > 1 else None", "None", "no DeepStack"),
    ("index_copy(0, place_N, level_LNE[0])", "index_copy(0, place_N, level_LNE[-1])", "another level's features"),
    ("pixels + request.pixels > MOST_PIXELS", "pixels > MOST_PIXELS", "a film too many in a chunk"),
    ("run, pixels = [], 0", "run = []", "pixels that are never forgotten"),
)

MUTANTS = GRPO + SFT + DIFFICULTY + EVAL + STEP + POLICY + KEYS + SESSION + SUPERVISED + ENGINE + FEATURES
