"""Breaks of losses of pairs, reward models, PPO, and calibration; see mutants_table, whose tests these tables widen."""

from __future__ import annotations

from tests.mutants_table import breaks

TESTS = {  # which tests must notice a break in which file
    "maths/loss.py": ("maths/test_loss.py", "maths/test_preference.py"),
    "maths/ppo.py": ("maths/test_ppo.py",),
    "maths/reward.py": ("maths/test_reward.py",),
    "maths/stats.py": ("maths/test_stats.py", "maths/test_calibration.py"),
}

PAIRS = breaks(
    "maths/loss.py",
    (
        "- smoothing * logsigmoid(-margin_P)",
        "- smoothing * logsigmoid(margin_P)",
        "smoothing without the other order",
    ),
    ("reward_P2 = beta * pairs.sum_P2", "reward_P2 = beta * pairs.mean_P2", "DPO per token"),
    ("1 / (2 * beta)", "1 / beta", "IPO's target twice as far"),
    ("reward_P2[:, 1] - margin)", "reward_P2[:, 1] + margin)", "SimPO's margin the wrong way"),
    (
        "torch.where(pairs.whole_P, term_P * pairs.weight_P, 0)",
        "(term_P * pairs.weight_P)",
        "half a pair in the loss",
    ),
    (
        "answer_R, live_R.to(zeros_A.dtype)",
        "answer_R, torch.ones_like(zeros_A)[answer_R]",
        "tokens of weight 0 in an answer's length",
    ),
    ("(margin_P.sign() + 1) / 2", "(margin_P >= 0).to(margin_P.dtype)", "ties are right"),
)
REWARD = breaks(
    "maths/reward.py",
    ("lead_P - margin_P", "lead_P + margin_P", "margin the wrong way"),
    ("else sum_P * sign", "else sum_P.abs()", "the batch's centring pair by pair"),
    ("sum_P.square()", "lead_P.square()", "centring of the difference"),
    (".sum_P2[pairs.whole_P, 0]", ".sum_P2[pairs.whole_P, 1]", "the rejected answer's margin"),
)
PPO = breaks(
    "maths/ppo.py",
    ("answers, longest + 1)", "answers, longest + 1) + 1", "a value behind the end"),
    ("discount * lam * advantage_AL", "lam * advantage_AL", "discount missing in the trace"),
    ("advantage_R + value_R.detach()", "advantage_R", "returns without the value"),
    ("std(correction=correction)", "std(correction=0)", "the other deviation"),
    ("reward_R = -beta * token_kl", "reward_R = beta * token_kl", "KL rewarded"),
    ("(~finished_A)", "finished_A", "finished answers punished"),
    ("length_A.cumsum(0) - 1", "length_A.cumsum(0) - length_A", "the score on the first token"),
    ("torch.maximum(free_R, bound_R)", "torch.minimum(free_R, bound_R)", "the kinder of the two squares"),
    ("1 + error * min(", "1 - error * min(", "the controller runs away"),
)
CALIBRATION = breaks(
    "maths/stats.py",
    ("* b.right.n for b in found) /", "for b in found) /", "bins not weighed"),
    ("sqrt(n - 3)", "sqrt(n)", "Fisher's interval too narrow"),
    ("tanh(atanh(value) - half)", "value - half", "Fisher's transform forgotten"),
)
MUTANTS = PAIRS + REWARD + PPO + CALIBRATION
