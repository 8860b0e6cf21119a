"""Breaks of engines in other processes: importance weights, what is settled, what parity says."""

from __future__ import annotations

from tests.mutants_table import breaks

TESTS = {  # which tests must notice a break in which file
    "maths/importance.py": ("maths/test_importance.py",),
    "train/outside.py": ("train/test_outside.py",),
    "train/parity.py": ("train/test_parity.py",),
    "recipes/parity.py": ("train/test_parity.py",),
}

IMPORTANCE = breaks(
    "maths/importance.py",
    ("logprob_R.double() - sampled_R.double()", "sampled_R.double() - logprob_R.double()", "the ratio upside down"),
    ("torch.where(ratio_A <= cap, ratio_A, 0)", "ratio_A.clamp(max=cap)", "truncated, not masked"),
    ("torch.where(ratio_A <= cap, ratio_A, 0)", "torch.where(ratio_A <= cap, 1.0, 0)", "kept answers weigh 1"),
    ("kl_k3(torch.zeros_like(apart_R), apart_R)", "kl_k3(apart_R, torch.zeros_like(apart_R))", "KL the other way"),
    ("float((weight_A == 0).double().mean())", "float((ratio_A > cap).double().mean())", "masked without a cap"),
    ("float(apart_R.abs().max())", "float(apart_R.max())", "a gap with its sign"),
)
OUTSIDE = breaks(
    "train/outside.py",
    ("row.target_R, temperature=heat)", "row.target_R)", "scored at another temperature"),
    ("if not found.gap <= self.gate:", "if found.gap > self.gate:", "a gate that lets no number pass"),
    ("        self.checked = True\n", "", "a gate for every step"),
    ("correction=next(weights)", "correction=1.0", "no correction"),
    ("logprob=tuple(next(own).tolist()), ", "", "the engine's own log-probabilities"),
    ("        self.engine.load(local.model, local.weights)\n", "", "weights of yesterday"),
    ("seen, self.seen = self.seen, []", "seen = self.seen", "numbers of the steps before"),
    ("sum(one.kl * one.tokens for one in seen) / tokens", "sum(one.kl for one in seen)", "a KL of batches"),
)
PARITY = breaks(
    "train/parity.py",
    ("torch.equal(engine.positions(prompt), prompt.position_3P)", "True", "positions nobody compared"),
    ("(ours_NE - engine.held(prompt).to(ours_NE.dtype))", "(ours_NE - ours_NE)", "features that never change"),
    ("sum(one.mean * one.tokens for one in seen) / tokens", "sum(one.mean for one in seen)", "a mean of prompts"),
) + breaks(
    "recipes/parity.py",
    ("if not found.logprob_max_abs <= gate:", "if found.logprob_max_abs > gate:", "no number is parity"),
    ("if not found.ids_equal:", "if found.ids_equal:", "other tokens are parity"),
)

MUTANTS = (*IMPORTANCE, *OUTSIDE, *PARITY)
