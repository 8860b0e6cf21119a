"""The table of critic-free algorithms: an advantage, a loss and a token count each. A new algorithm is a line here.

The training step never sees this table: it gets weights and one loss. Clip bounds are the papers' where they give
them; a recipe changes them with `functools.partial(algorithm.loss, clip_high=…)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import Tensor

from longtake.maths import advantage, loss
from longtake.maths.advantage import Normaliser
from longtake.maths.loss import Loss


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Example: ALGORITHMS["dapo"].advantage(reward_NG)."""

    name: str
    advantage: Callable[[Tensor], Tensor]  # reward_NG -> advantage_NG
    loss: Loss
    normaliser: Normaliser  # see advantage.token_weights
    drop_equal: bool  # groups whose rewards are all equal leave the batch (and its count) before the loss
    source: str


_token_clip = partial(loss.clipped_surrogate, clip_low=0.2, clip_high=0.2)
_clip_higher = partial(loss.clipped_surrogate, clip_low=0.2, clip_high=0.28)
# MiniMax-M1 bounds the ratio from above only and gives no number: at most 5 is our choice. The advantage is GRPO's, the
# dropped groups and the token mean are DAPO's, as its §3.1 says.
_bounded_weight = partial(loss.clipped_weight, clip_low=1.0, clip_high=4.0)
_sequence_clip = partial(loss.sequence_surrogate, clip_low=3e-4, clip_high=4e-4)

_TABLE = (
    Algorithm("longtake", advantage.batch_std, _clip_higher, "batch tokens", True, "arXiv:2508.08221, 2503.14476"),
    Algorithm("grpo", advantage.group_normalised, _token_clip, "per answer mean", False, "arXiv:2402.03300"),
    Algorithm("dapo", advantage.group_normalised, _clip_higher, "batch tokens", True, "arXiv:2503.14476"),
    Algorithm("dr_grpo", advantage.group_mean, _token_clip, "constant", False, "arXiv:2503.20783"),
    Algorithm("gspo", advantage.group_normalised, _sequence_clip, "per answer mean", False, "arXiv:2507.18071"),
    Algorithm("cispo", advantage.group_normalised, _bounded_weight, "batch tokens", True, "arXiv:2506.13585"),
    Algorithm("rloo", advantage.leave_one_out, loss.policy_gradient, "constant", False, "arXiv:2402.14740"),
    Algorithm("reinforce_pp", advantage.batch_normalised, _token_clip, "batch tokens", False, "arXiv:2501.03262"),
    Algorithm(
        "reinforce_pp_baseline",
        advantage.group_mean_batch_normalised,
        _token_clip,
        "batch tokens",
        False,
        "arXiv:2501.03262",
    ),
)
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({line.name: line for line in _TABLE})
