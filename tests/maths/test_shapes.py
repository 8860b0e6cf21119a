"""The shape checks of conftest.py are on: wrong shapes are refused at the call."""

import jaxtyping
import pytest
import torch

from longtake.maths import advantage, attention, decode, dense, loss
from longtake.records import Layout


def test_wrong_shapes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="reward_NG"):
        advantage.group_mean(torch.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError, match="old_logprob_R"):
        loss.policy_gradient(torch.zeros(3), torch.zeros(4), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'v'"):
        attention.shared_prefix_attention(
            torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 4, 3, 8), Layout(((2, (1,)),)), scale=1.0
        )
    own = torch.zeros(2, 2, 5, 8)
    with pytest.raises(jaxtyping.TypeCheckError, match="own_v"):
        decode.decode_attention(torch.zeros(2, 4, 1, 8), [], own, own[:, :, 1:], scale=1.0)
    with pytest.raises(jaxtyping.TypeCheckError, match="q_THD"):
        dense.takes(torch.zeros(3, 8), 2)
