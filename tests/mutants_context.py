"""Breaks of what makes a context longer: scaled positions, what folders say of them, what fits. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

ROPE, REACH = "models/test_rope.py", "train/test_reach.py"
PICK, BUDGET = "data/test_keyframes.py", "runtime/test_budget.py"
TESTS = {
    "models/rope.py": (ROPE,),
    "models/context_file.py": (ROPE,),
    "models/network.py": ("models/test_context_families.py",),
    "train/reach.py": (REACH,),
    "data/subtitles.py": ("data/test_subtitles.py",),
    "data/frames.py": (PICK, BUDGET),
    "data/cache.py": (PICK, BUDGET),
    "data/write.py": (PICK,),
    "runtime/films.py": (BUDGET, "runtime/test_features_ranks.py", "runtime/test_films_ranks.py"),
    "train/settings.py": (BUDGET,),
}

SCALES = breaks(
    "models/rope.py",
    ('{**own, "rope_theta": grown}', '{**own, "rope_theta": own["rope_theta"]}', "dynamic does nothing"),
    ("factor * factor - (factor - 1)", "factor", "the base of another NTK"),
    ("width / (width - 2)", "1.0", "no exponent of the width"),
    ('own.get("partial_rotary_factor", 1.0)', "1.0", "the head's width for the rotating one"),
    (
        'config.rope_parameters = {**own, "rope_type"',
        'config.rope_parameters = {"rope_theta": own["rope_theta"], "rope_type"',
        "sections lost",
    ),
    ("int(factor * longest)", "longest", "a larger base, the old context"),
    ("text.rotary_emb = type(text.rotary_emb)(config=config)", "pass", "the config alone"),
    ('if own["rope_type"] != "default":', "if False:", "scaled twice"),
    ("if not 1 < factor", "if not 0 < factor", "a factor of 1"),
    ('BY_LENGTH = ("dynamic", "longrope")', 'BY_LENGTH = ("longrope",)', "dynamic checkpoints are taken"),
    ("return max(longest, int(", "return max(0, int(", "a raised context is shrunk"),
    ('parameters.get("original_max_position_embeddings") or (', "(", "DeepSeek's factor is lost"),
    ("(longest if ours else 0)", "longest", "LongVILA counts twice"),
    ("(longest if ours else 0)", "0", "our own factor is lost"),
    ("getattr(text, STATED, None) or 0", "0", "Vicuna 16k loses three quarters"),
)

FOLDERS = breaks(
    "models/context_file.py",
    ("    if kept != Kept():", "    if False:", "an adapter forgets"),
    ("if asked and not built.rope:", "if asked and not kept.rope:", "an adapter's base stays as it is"),
    ("known = kept.rope or built.rope", "known = built.rope", "an adapter's own scale is not read"),
    ("    if known and {", "    if False and {", "another scale over the trained one"),
    ("model.context = Kept(asked, seen)", "model.context = Kept(rope, seen)", "what was read is not saved again"),
    ("        model.set_reduction(seen)", "        pass", "a reduction without effect"),
    ("    check(model.text.config)\n", "", "frequencies that follow the length"),
) + breaks(
    "models/network.py",
    ('folder.glob(f"*/{adapter_files.CONFIG}")', 'folder.glob("*/*.json")', "beside every part of an NVILA"),
)

FITS = breaks(
    "train/reach.py",
    ("(question.text) + most(question)", "(question.text)", "answers are not counted in the bound"),
    ("return most_tokens(question.text) +", "return", "the first text stands for all"),
    ("_span(receipt) > _span(self.spans)", "False", "the first window stands for all"),
    ("receipt.seconds[-1] > self.ends.seconds[-1]", "False", "the first end stands for all"),
    ("own.most = max(own.most, more(look))", "own.most = more(look)", "the last text stands for all"),
    ("if reached + more(look) > limit:", "if True:", "prompts that fit are made beside one that may not"),
    ("if look.seen() not in known:", "if True:", "a receipt for every question"),
    ("GROWTH * (whole - plain)", "(whole - plain)", "normal forms make nothing longer"),
    ("max(bound.get(name, 0), most)", "most", "the last answer bounds all"),
    ("more + 1 + sum(", "more + sum(", "no end token"),
    ("answers.most if isinstance(answers, Written) else answers", "answers", "all answers are counted"),
    ("max(map(count, texts[name]))", "count(texts[name][0])", "the first answer stands for all"),
    ("if single else count(spans)", "", "what a template writes between answers"),
    ("(seen.width, seen.height, len(seen.indices), seen.image)", "(seen.height,)", "all sizes are one"),
    ("if end <= limit:", "if end < limit:", "the last position is not used"),
    ("_reached(prompt) + answer", "_reached(prompt)", "a prompt without its answer"),
    ("prompt.position_3P.max()) + 1", "prompt.position_3P.max())", "a position short"),
    ("if model.context.rope or scaled(model.net.config) else", "if False else", "scaled twice is advised"),
)

WORDS = breaks(
    "data/subtitles.py",
    ("3600 * int(hours)", "60 * int(hours)", "hours are minutes"),
    ("10 ** len(fraction)", "1000", "a short fraction of a second"),
    ("cue.end >= start", "cue.start >= start", "what is on already is not read"),
    ("cue.start <= end", "cue.end <= end", "what goes on is not read"),
    ("if policy.seconds is not None:", "if False:", "explicit times are no window"),
    ('"\\n".join([*lines, question.text])', '"\\n".join([question.text, *lines])', "behind the question"),
    ("html.unescape(", "str(", "marks of a .vtt stay"),
    ("if not 0 <= start <= end:", "if False:", "times that run backwards"),
    ("if not found:", "if False:", "an empty file is a film without words"),
)

PICKS = breaks(
    "data/frames.py",
    ("if far <= nearest), None)", "), None)", "the first key frame of a bin"),
    ("min(away, default=0.0) + GRACE", "max(away, default=0.0) + GRACE", "the farthest"),
    ("(a + b) / 2) for i in inside", "a) for i in inside", "nearest to the border"),
    ("bisect_left(keys, first) :", "0 :", "key frames of earlier bins"),
    (": bisect_left(keys, last)]", ":]", "key frames of later bins"),
    ("= key, _time(film, key, times_N)", "= key, seconds[k]", "the centre's time for the key frame's"),
    ("if without := keys.count(None):", "if without := 0:", "what was not there is not said"),
    ("policy.pick is not None or policy.image", "policy.image", "the run goes before the row"),
    ("or policy.image else", "else", "a picture is picked"),
    ("or policy.pick is not None):", "):", "explicit times are picked"),
)

TIERS = breaks(
    "data/cache.py",
    ("stored.key_N is not None or not _by_keys(policies)", "True", "old tiers do not learn of key frames"),
    ("if not known and _by_keys(policies):", "if _by_keys(policies) and stored:", "a new tier knows none"),
    ("            if known and not need:", "            if not need:", "key frames are not kept"),
    ("            if need:\n", "            if True:\n", "a look for key frames counts as a decode"),
)

BUDGETS = (
    breaks(
        "runtime/films.py",
        ("limit = policy.budget or self.budget", "limit = self.budget or policy.budget", "the run goes before the row"),
        (
            "bisect_right(range(1, most), limit, key=tokens)",
            "bisect_right(range(1, most), limit - 1, key=tokens)",
            "less",
        ),
        ("if tokens(most) <= limit:", "if tokens(most) < limit:", "what fits is cut"),
        ("- receipt.padded\n        if tokens", "- 0\n        if tokens", "padding is counted"),
        ("key=tokens), budget=limit)", "key=tokens))", "the receipt does not say why"),
        ("least = most if policy.seconds else 1", "least = 1", "explicit times are thinned"),
        ("given = replace(policy, budget=None)", "given = policy", "a budget that cuts nothing is said"),
        ("len(receipt.indices), receipt.image\n", "0, receipt.image\n", "all numbers of frames cost the same"),
        ("found = picked(given, self.pick)", "found = given", "the run's pick has no effect"),
        ("found = sent(policy, self.pick)", "found = picked(given, self.pick)", "an endpoint's budget is dropped"),
    )
    + breaks("train/settings.py", ("pick=own.pick, budget=own.budget", "pick=own.pick", "a row's budget is lost"))
    + breaks(
        "data/write.py",
        ('    "budget": "budget",\n', "", "the next stage does not know"),
    )
)

MUTANTS = SCALES + FOLDERS + FITS + WORDS + PICKS + TIERS + BUDGETS
