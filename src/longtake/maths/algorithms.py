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
    """Example: ALGORITHMS["dapo"].advantage(reward_NG).

    The advantage is `centred` of each group alone times `scale` of all. So the gradient of on-policy answers, which is
    linear in it, may be summed group by group before the rewards of others are known, and scaled at last. Where the
    advantage does not part so, `scale` is None: rewards come first.
    """

    name: str
    centred: Callable[[Tensor], Tensor]  # reward_NG -> advantage_NG, but for the scale
    loss: Loss
    normaliser: Normaliser  # see advantage.token_weights
    drop_equal: bool  # groups whose rewards are all equal leave the batch (and its count) before the loss
    source: str
    scale: Callable[[Tensor], float] | None = advantage.one  # reward_NG of the whole batch -> the scale

    def advantage(self, reward_NG: Tensor) -> Tensor:
        """[N, G] of a whole batch."""
        centred_NG = self.centred(reward_NG)
        return centred_NG if self.scale is None else centred_NG * self.scale(reward_NG)


_token_clip = partial(loss.clipped_surrogate, clip_low=0.2, clip_high=0.2)
_clip_higher = partial(loss.clipped_surrogate, clip_low=0.2, clip_high=0.28)
# MiniMax-M1 bounds the ratio from above only and gives no number: at most 5 is our choice. The advantage is GRPO's, the
# dropped groups and the token mean are DAPO's, as its §3.1 says.
_bounded_weight = partial(loss.clipped_weight, clip_low=1.0, clip_high=4.0)
_sequence_clip = partial(loss.sequence_surrogate, clip_low=3e-4, clip_high=4e-4)

_GRPO, _DAPO = "arXiv:2402.03300", "arXiv:2503.14476"
_REINFORCE = "arXiv:2501.03262"
_LONGTAKE = "arXiv:2508.08221, 2503.14476"
_by_mean, _by_group, _by_batch = advantage.group_mean, advantage.group_normalised, advantage.batch_normalised
_TABLE = (
    Algorithm("longtake", _by_mean, _clip_higher, "batch tokens", True, _LONGTAKE, advantage.batch_scale),
    Algorithm("grpo", _by_group, _token_clip, "per answer mean", False, _GRPO),
    Algorithm("dapo", _by_group, _clip_higher, "batch tokens", True, _DAPO),
    Algorithm("dr_grpo", _by_mean, _token_clip, "constant", False, "arXiv:2503.20783"),
    Algorithm("gspo", _by_group, _sequence_clip, "per answer mean", False, "arXiv:2507.18071"),
    Algorithm("cispo", _by_group, _bounded_weight, "batch tokens", True, "arXiv:2506.13585"),
    Algorithm("rloo", advantage.leave_one_out, loss.policy_gradient, "constant", False, "arXiv:2402.14740"),
    Algorithm("reinforce_pp", _by_batch, _token_clip, "batch tokens", False, _REINFORCE, None),
    Algorithm(
        "reinforce_pp_baseline",
        advantage.group_mean_batch_normalised,
        _token_clip,
        "batch tokens",
        False,
        _REINFORCE,
        None,
    ),
)
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({line.name: line for line in _TABLE})
