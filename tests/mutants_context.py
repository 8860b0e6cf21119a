"""Breaks of what makes a context longer: scaled positions, what folders say of them, what fits. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

ROPE, REACH = "models/test_rope.py", "train/test_reach.py"
TESTS = {
    "models/rope.py": (ROPE,),
    "models/context_file.py": (ROPE,),
    "train/reach.py": (REACH,),
    "data/subtitles.py": ("data/test_subtitles.py",),
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
    ('parameters.get("original_max_position_embeddings") or longest', "longest", "DeepSeek counts twice"),
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
)

FITS = breaks(
    "train/reach.py",
    ("+ answers(question) for question", "for question", "answers are not counted in the bound"),
    ("len(question.text.encode())", "0", "the first text stands for all"),
    ("key=lambda receipt: receipt.seconds[-1] - receipt", "key=lambda receipt: 0 * receipt", "any window"),
    ("key=lambda receipt: receipt.seconds[-1])", "key=lambda receipt: 0)", "any end"),
    ("(seen.width, seen.height, len(seen.indices), seen.image)", "(seen.height,)", "all sizes are one"),
    ("if end <= limit:", "if end < limit:", "the last position is not used"),
    ("_reached(prompt) + answer", "_reached(prompt)", "a prompt without its answer"),
    ("prompt.position_3P.max()) + 1", "prompt.position_3P.max())", "a position short"),
    ("if model.context.rope else", "if False else", "scaled twice is advised"),
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

MUTANTS = SCALES + FOLDERS + FITS + WORDS
