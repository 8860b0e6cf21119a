"""Losses of preference pairs and of reward models as TRL computes them: bench/results/trl_losses.json.

    .venv-bench/bin/python -m bench.trl_losses

tests/maths/test_trl.py holds longtake.maths to that file, on the same numbers. What runs is TRL's own code, the methods
of its trainers that compute a loss, in float64, on stand-ins for trainer and model that have what these methods read:
log-probabilities of ragged pairs, or scores. A loss is a mean over pairs; gradients are for the log-probability of
every token, or for every score. TRL 1.16 has no PPO any more.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import bench.cpu_torchvision  # noqa: F401  # before TRL, imported below, meets torchvision
from longtake.log import write_json_atomic

RESULT = Path(__file__).parent / "results" / "trl_losses.json"
LENGTHS = ((5, 9), (1, 4), (12, 3), (7, 7), (2, 1), (8, 20))  # tokens of the chosen and the rejected answer
PROMPT = 3  # tokens before every answer
DPO = ({"beta": 0.1}, {"beta": 0.5})
IPO = ({"beta": 0.1}, {"beta": 1.0})
SIMPO = ({"beta": 2.0, "margin": 0.5}, {"beta": 2.5, "margin": 1.4})
SMOOTHED = ({"beta": 0.3, "smoothing": 0.0}, {"beta": 0.3, "smoothing": 0.2})
REWARD: tuple[dict[str, Any], ...] = tuple({"margin": m, "centring": c} for m in (False, True) for c in (None, 0.01))

Answers = list[list[float]]


def alone() -> Any:
    """An accelerator of one process."""
    same = {"gather": lambda x: x, "gather_for_metrics": lambda x: x}
    return SimpleNamespace(device=torch.device("cpu"), **same)


def pairs() -> dict[str, Answers]:
    """Log-probabilities of policy and reference: {"policy" | "reference": [chosen, rejected, chosen, …]}, below 0."""
    random = torch.Generator().manual_seed(16)
    made: dict[str, Answers] = {"policy": [], "reference": []}
    for length in (length for pair in LENGTHS for length in pair):
        reference = -0.05 - 3 * torch.rand(length, generator=random, dtype=torch.float64)
        moved = reference * torch.exp(0.4 * torch.randn(length, generator=random, dtype=torch.float64))
        made["policy"].append(moved.tolist())
        made["reference"].append(reference.tolist())
    return made


def padded(answers: Answers) -> tuple[Tensor, Tensor]:
    """([2 × pairs, PROMPT + longest] log-probabilities, mask of answers' tokens), the chosen first, as TRL has it."""
    ordered = answers[0::2] + answers[1::2]
    longest = max(map(len, ordered))
    logprob = torch.zeros(len(ordered), PROMPT + longest, dtype=torch.float64)
    mask = torch.zeros(len(ordered), PROMPT + longest, dtype=torch.long)
    for row, answer in enumerate(ordered):
        logprob[row, PROMPT : PROMPT + len(answer)] = torch.tensor(answer, dtype=torch.float64)
        mask[row, PROMPT : PROMPT + len(answer)] = 1
    return logprob, mask


def unpadded(values: Tensor, mask: Tensor) -> Answers:
    """Back to chosen, rejected, chosen, …"""
    rows = [row[own.bool()].tolist() for row, own in zip(values, mask, strict=True)]
    half = len(rows) // 2
    return [rows[place] for pair in range(half) for place in (pair, half + pair)]


def found(loss: Tensor, leaf: Tensor, mask: Tensor, metrics: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    (gradient,) = torch.autograd.grad(loss, leaf)
    means = {name: values[0] for name, values in metrics.items() if name.startswith("rewards/")}
    return {"loss": float(loss.detach()), "gradient": unpadded(gradient, mask), **means}


def dpo(given: Mapping[str, Answers], kind: str, *, beta: float) -> dict[str, Any]:
    """DPOTrainer._compute_loss with the reference's log-probabilities computed before."""
    logprob, mask = padded(given["policy"])
    logprob.requires_grad_()
    reference, _ = padded(given["reference"])
    chosen, rejected = reference.sum(1).chunk(2)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=alone(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta, loss_types=[kind], loss_weights=[1.0],
        label_smoothing=0.0, use_weighting=False, _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    shifted = logprob[:, 1:]
    nothing = torch.zeros_like(shifted)
    said = SimpleNamespace(log_probs=shifted, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    inputs = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    from trl import DPOTrainer

    loss = DPOTrainer._compute_loss(trainer, lambda **_: said, inputs, False)
    return found(loss, logprob, mask, trainer._metrics["eval"])


def cpo(given: Mapping[str, Answers], kind: str, *, beta: float, margin: float, smoothing: float) -> dict[str, Any]:
    """CPOTrainer.get_batch_logps and .cpo_loss, without reference. Of two words the first has the log-probability."""
    logprob, mask = padded(given["policy"])
    safe = torch.where(mask.bool(), logprob, -1.0).requires_grad_()
    logits = torch.stack((safe, torch.log(-torch.expm1(safe))), -1)
    logits = torch.cat((logits[:, 1:], logits[:, :1]), 1)  # the state before a token predicts it
    labels = torch.where(mask.bool(), 0, -100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        from trl.experimental.cpo import CPOTrainer

    logps = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=kind == "simpo")
    trainer = SimpleNamespace(
        alpha=0.0, accelerator=alone(), loss_type=kind, beta=beta, simpo_gamma=margin, label_smoothing=smoothing
    )
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, *logps.chunk(2))
    metrics = {"rewards/chosen": [float(chosen.mean())], "rewards/rejected": [float(rejected.mean())]}
    return found(losses.mean(), safe, mask, metrics)


def reward(
    scores: Sequence[float], margins: Sequence[float], *, margin: bool, centring: float | None
) -> dict[str, Any]:
    """RewardTrainer.compute_loss on scores of chosen, rejected, chosen, …"""
    leaf = torch.tensor([*scores[0::2], *scores[1::2]], dtype=torch.float64, requires_grad=True)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=alone(), _total_train_tokens=0,
        args=SimpleNamespace(center_rewards_coefficient=centring), _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    inputs: dict[str, Any] = {"margin": torch.tensor(margins, dtype=torch.float64)} if margin else {}
    from trl import RewardTrainer

    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=leaf[:, None]), inputs)
    (gradient,) = torch.autograd.grad(loss, leaf)
    means = {name: trainer._metrics["eval"][name][0] for name in ("accuracy", "margin")}
    return {"loss": float(loss.detach()), "gradient": gradient.view(2, -1).T.flatten().tolist(), **means}


def measure() -> dict[str, Any]:
    """{"date", "versions", "in", "out": {kind: [{"knobs", "loss", "gradient", …}, …]}}."""
    given = pairs()
    random = torch.Generator().manual_seed(17)
    scores = (2 * torch.randn(2 * len(LENGTHS), generator=random, dtype=torch.float64) + 0.5).tolist()
    margins = (2 * torch.rand(len(LENGTHS), generator=random, dtype=torch.float64)).tolist()
    out: dict[str, list[dict[str, Any]]] = {
        "dpo": [{"knobs": knobs, **dpo(given, "sigmoid", **knobs)} for knobs in DPO],
        "ipo": [{"knobs": knobs, **dpo(given, "ipo", **knobs)} for knobs in IPO],
        "simpo": [{"knobs": knobs, **cpo(given, "simpo", smoothing=0.0, **knobs)} for knobs in SIMPO],
        "dpo_without_reference": [{"knobs": knobs, **cpo(given, "sigmoid", margin=0.0, **knobs)} for knobs in SMOOTHED],
        "reward": [{"knobs": knobs, **reward(scores, margins, **knobs)} for knobs in REWARD],
    }
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: metadata.version(name) for name in ("trl", "torch", "transformers")},
        "in": {**given, "scores": scores, "margins": margins},
        "out": out,
    }


def main() -> int:
    """Writes the file; exit code."""
    write_json_atomic(RESULT, measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
