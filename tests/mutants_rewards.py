"""Breaks of reward models: how they learn from pairs, score answers, and tell of themselves; see mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

TESTS = {  # which tests must notice a break in which file
    "rewards/model.py": ("rewards/test_model.py",),
    "train/comparing.py": ("train/test_comparing.py",),
    "train/ranking.py": ("train/test_ranking.py",),
}

MODEL = breaks(
    "rewards/model.py",
    ("return *ids, *suffix, PAST", "return *ids, *suffix", "the state before the last token"),
    ("return *ids, *suffix, PAST", "return *ids, PAST", "the suffix forgotten"),
    ("part.answer_R[1:] != part.answer_R[:-1]", "part.answer_R[1:] == part.answer_R[:-1]", "states inside answers"),
    ("self.model.adapter.using(self.name)", "self.model.adapter.off()", "the base model's states"),
    ("(answer.ids[:-1] if answer.finish", "(answer.ids if answer.finish", "two end tokens"),
    (" else answer.ids), end)", " else answer.ids[:-1]), end)", "a cut answer without its last token"),
    ("if tower_fingerprint(policy) != tower_fingerprint(model)", "if False", "another tower's features"),
    ("trainable=False, scalar=True", "trainable=True, scalar=True", "the reward model learns"),
)
COMPARING = breaks(
    "train/comparing.py",
    ("self.margin * (pair.margin or 0.0)", "pair.margin or 0.0", "margins not weighed"),
    (
        "(0.0,) * (len(own) - 1) + (last,)",
        "(last,) + (0.0,) * (len(own) - 1)",
        "the score before the answer's first token",
    ),
    ("read_ids(own, self.suffix)", "read_ids(own, ())", "learned without the suffix"),
    ("model.end_ids[0], turns)[0]", "model.end_ids[0], turns)[0][1:]", "the template's first token lost"),
    ("if NAME not in model.heads:", "if True:", "a head thrown away"),
)
RANKING = breaks(
    "train/ranking.py",
    ("return 0.5 if lead == 0 else", "return 1.0 if lead == 0 else", "ties are right"),
    ("math.exp(-abs(one.lead))", "math.exp(-one.lead)", "the claim of the order that was labelled"),
    ("one.lead if chosen else -one.lead", "one.lead", "labels for truth"),
    ("_won(one.lead * one.longer)", "_won(one.lead)", "accuracy for fondness of length"),
    ("if chosen != rejected:", "if chosen:", "pairs of two right answers"),
)
MUTANTS = MODEL + COMPARING + RANKING
