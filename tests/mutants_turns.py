"""Breaks of what a step of supervised learning is made of: turns as tokens, stages, pictures. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

TURNS, WALK, MIXED = "train/test_turns.py", "train/test_walk.py", "train/test_mixed.py"
QWEN25, FOLDERS = "models/test_qwen2_5_vl.py", "models/test_processor_files.py"
SENT = "models/test_sent.py"
PICTURES, STILLS = "models/test_pictures.py", "data/test_stills.py"
TAUGHT = "recipes/test_twin.py::test_a_supervised_step_is_what_plain_loops_make_of_it"
TESTS = {
    "data/readers.py": ("data/test_turns.py", STILLS),
    "data/shown.py": (STILLS,),
    "models/checkpoint.py": (FOLDERS,),
    "models/pixels.py": (PICTURES, FOLDERS),
    "models/qwen2_5_vl.py": (QWEN25, SENT),
    "models/qwen3_vl.py": (PICTURES, SENT),
    "runtime/load.py": (FOLDERS,),
    "models/qwen_vl.py": (f"{PICTURES}::test_prompt_is_the_processors", "models/test_prompt.py", SENT),
    "train/turns.py": (TURNS,),
    "train/walk.py": (WALK, TAUGHT),
}

TOKENS = breaks(
    "train/turns.py",
    ("weights.append(turn[-1].weight)", "weights.append(1.0)", "the end token's weight"),
    ("ids.append(end)", "ids += [] if turn is turns[-1] else [end]", "no end token"),
    ("weights += [span.weight] * len(piece)", "weights += [turn[0].weight] * len(piece)", "the first span's weight"),
    ("weights += [0.0] * len(piece)", "weights += [1.0] * len(piece)", "user turns are learned"),
    ("found.append(ids[1:])", "found.append(ids)", "two end tokens"),
    (
        "whole.partition(before)[2]",
        "whole.partition(firsts[0][1])[2]",
        "every later turn begins after the first answer",
    ),
    (
        "marked.append(_said(turn[0].role, texts if asked else here))",
        "marked.append(_said(turn[0].role, here))",
        "marks",
    ),
    (".startswith(start)", ".startswith('')", "a template that rewrites is taken"),
    ("ids[0] != end", "False", "a template without end tokens is taken"),
)

STAGES = breaks(
    "train/walk.py",
    ("key=lambda i: hardness_N[i]", "key=lambda i: -hardness_N[i]", "hard before easy"),
    (
        "starts = [round(steps * place / count) for place in places]",
        "starts = [steps * k // (len(places) - 1) for k, _ in enumerate(places)]",
        "equal shares of the steps",
    ),
    ("round(cut * count) for cut", "round((1 - cut) * count) for cut", "quantiles from the other end"),
    ("stage.start <= step", "stage.start < step", "a border one step late"),
    ("taken - stage.start * self.size", "taken", "a stage goes on where the one before ended"),
    ('keyed(self.seed, "stage", number)', "number", "the seed forgotten in stages"),
    ("sum(w != 0 for w in", "sum(1 for w in", "what is only read counts as long"),
    ("sum(own) / len(own)", "sum(own)", "several answers count as one long one"),
    ("-float(rate)", "float(rate)", "low pass rates first"),
    ("self.size or count, self.shuffle", "(self.size or 0) + 1, self.shuffle", "a question too many"),
    ("size, learns.shuffle, learns.seed", "size, True, learns.seed", "always shuffled"),
    ("made.fewest < (size or 1)", "len(examples) < (size or 1)", "a batch larger than a stage"),
)

SHOWN = breaks(
    "data/shown.py",
    ('len(holder["images"]) == 1', 'len(holder["images"]) > 1', "frames are a picture"),
    ("PICTURE, max_pixels=own.max_pixels if own else None", "PICTURE, max_pixels=None", "a picture's own size"),
    ("seconds=(0.0,), image=True", "frames=1", "a picture is a film of one frame"),
)

READERS = breaks(
    "data/readers.py",
    ("if place % 2:", "if not place % 2:", "answers and questions change places"),
    ('Span(_text(content, shows=False), 0.0, "user")', 'Span(_text(content, shows=False), weight, "user")', "weights"),
    ('weight * weight_of(turn, "the assistant turn")', "weight", "a turn's weight"),
    ("told = told[:1]", 'told = [told[0], (".", {})]', "an empty answer is one"),
)

PIXELS = breaks(
    "models/pixels.py",
    ("wide, high = max(factor, wide), max(factor, high)", "pass", "pictures without height"),
    ("if max_pixels is None or large[0] * large[1] <= max_pixels:", "if True:", "the least size against max_pixels"),
    (
        "elif wide * high < least:\n            beta = math.sqrt(least / (width * height))",
        "elif False:\n            beta = 1.0",
        "small pictures stay small",
    ),
    ("if colours(image) != colours(video):", "if False:", "pictures in the colours of films"),
    ("not in (None, video[name])", "is False", "pictures in the patches of films"),
    ("if kind is FramePixels else ()", "", "whole films bounded as pictures"),
)

CHECKPOINT = breaks(
    "models/checkpoint.py",
    ("if processor.get(name) not in (None, True):", "if False:", "pixels as they come"),
    ("abs(factor * 255 - 1) > 1e-6", "False", "another white"),
    ("if how not in (None, BICUBIC):", "if False:", "another resize"),
    ("if not min(std) > 0:", "if False:", "a division by zero"),
    ("if (folder / GENERATION).is_file():", "if False:", "end tokens lost"),
    ('if not said.get("text_config") and', "if False and", "a network of any size"),
)

CHECKPOINT += breaks("runtime/load.py", ("near = [] if another else", "near =", "another family for a typo"))

QWEN = breaks(
    "models/qwen_vl.py",
    ("if receipt.image:\n            return text", "if False:\n            return text", "a picture with a time"),
    ("replace(receipt, tokens=sum(expected))", "receipt", "visual tokens uncounted"),
)  # fmt: skip
QWEN += breaks("models/qwen3_vl.py", ("= max(grid[1:])", "= grid[1]", "positions behind a picture"))
QWEN += breaks(
    "models/qwen2_5_vl.py",
    ("spread_3P[:, place_TN].max() + 1", "max(grid[1:]) // 2", "text inside a long film, as transformers 5.3"),
    ("/ max(1, len(shown) - 1)", "/ max(2, len(shown) - 1)", "two frames half as far apart"),
    ("dtype=torch.float32) * rate", "dtype=torch.float32)", "time without its rate"),
    ("[self.seconds(receipt)] if receipt else []", "None", "every film a patch a second"),
)

MUTANTS = TOKENS + STAGES + SHOWN + READERS + PIXELS + CHECKPOINT + QWEN
