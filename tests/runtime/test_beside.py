"""Several adapters on one base: each acts as it would alone, the base is held once, those that learn are saved."""

import pytest
import torch
from tests.models import tiny
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models import adapters, heads
from longtake.records import Layout
from longtake.runtime.beside import load_beside
from longtake.runtime.inputs import fill
from longtake.runtime.load import base_version, load_model, weights_version

IDS = (70, 71, 72, 90, 91, 73)
EXACT = 1e-12  # float64


def saved(folder, out, seed, *, rank=4, kind="lora", targets=None, head=False):
    """An adapter that has learned something, on the base in `folder`."""
    model = tiny.exact(folder)
    adapters.add_adapter(model, kind, rank, 8.0, targets)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=random) * 0.3)
    if head:
        heads.add_head(model, seed=seed)
    out.mkdir()
    model.save(out)
    return out


def hidden(model):
    ids_T = torch.tensor(IDS)
    none_T = torch.zeros(len(IDS), dtype=torch.bool)
    embed_TE, deepstack = fill(model, ids_T, none_T, [])
    return model.hidden(embed_TE, model.positions(IDS, []), none_T, deepstack, Row(Layout(((len(IDS), ()),))))


def exact(folder):
    model = load_model(folder, "float64", "cpu")
    tiny.exact_norms(model.net)
    return model


@pytest.fixture
def both(folder, tmp_path):
    """(policy with a reward model beside it, that reward model alone, both folders)."""
    policy = saved(folder, tmp_path / "policy", 1)
    reward = saved(folder, tmp_path / "reward", 2, rank=3, head=True)
    model = exact(policy)
    load_beside(model, "reward", reward, trainable=False, scalar=True)
    return model, exact(reward), policy, reward


def test_each_acts_as_it_does_alone(both, folder):
    model, alone, policy, _ = both
    assert_close(hidden(model), hidden(exact(policy)), rtol=0, atol=EXACT)
    with model.adapter.using("reward"):
        assert_close(hidden(model), hidden(alone), rtol=0, atol=EXACT)
        assert_close(model.heads["reward"](hidden(model)), alone.heads["default"](hidden(alone)), rtol=0, atol=EXACT)
        with model.adapter.off():
            assert_close(hidden(model), hidden(tiny.exact(folder)), rtol=0, atol=EXACT)
        assert_close(hidden(model), hidden(alone), rtol=0, atol=EXACT)
    assert not torch.allclose(hidden(model), hidden(alone))


def test_the_base_is_there_once(both, folder):
    model = both[0]
    base = {name: p.shape for name, p in tiny.exact(folder).net.named_parameters()}
    own = [p for name in ("default", "reward") for p in model.adapter.weights(name).values()]
    assert sum(p.numel() for p in model.net.parameters()) == sum(s.numel() for s in base.values()) + sum(
        p.numel() for p in own
    )
    assert base_version(model) == base_version(exact(both[2]))


def test_the_frozen_one_does_not_learn(both):
    model = both[0]
    assert not any(p.requires_grad for p in model.adapter.weights("reward").values())
    assert not any(p.requires_grad for p in model.heads["reward"].parameters())
    with model.adapter.using("reward"):
        assert not hidden(model).requires_grad


def test_gradients_go_to_the_one_that_acts(both):
    model, _, _, reward = both
    load_beside(model, "value", reward, trainable=True, scalar=True)
    with model.adapter.using("value"):
        model.heads["value"](hidden(model)).sum().backward()
    assert all(p.grad is None for p in model.adapter.weights().values())
    assert any(p.grad.abs().max() > 0 for p in model.adapter.weights("value").values())


def test_those_that_learn_are_saved_and_come_back(both, tmp_path):
    model, _, _, reward = both
    load_beside(model, "value", reward, trainable=True, scalar=True)
    with torch.no_grad():
        for p in (*model.adapter.weights("value").values(), *model.heads["value"].parameters()):
            p.add_(0.1)
    out = tmp_path / "out"
    out.mkdir()
    model.save(out)
    assert not (out / "reward").exists()
    again = exact(out)
    assert weights_version(again) == weights_version(exact(both[2]))
    load_beside(again, "value", out / "value", trainable=True, scalar=True)
    with model.adapter.using("value"), again.adapter.using("value"):
        assert_close(again.heads["value"](hidden(again)), model.heads["value"](hidden(model)), rtol=0, atol=EXACT)


def test_an_unknown_name(both):
    with pytest.raises(ValueError, match="no adapter 'ref': there are default, reward"), both[0].adapter.using("ref"):
        pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ({"kind": "alora"}, "two kinds"),
        ({"head": False}, "gives no scores"),
    ],
)
def test_what_does_not_go_together(both, folder, tmp_path, make, said):
    other = saved(folder, tmp_path / "other", 3, **{"head": True} | make)
    with pytest.raises(UserError, match=said):
        load_beside(both[0], "other", other, trainable=False, scalar=True)


def test_another_base(both, tmp_path):
    tiny.checkpoint(tmp_path / "base")
    other = saved(tmp_path / "base", tmp_path / "other", 3, head=True)
    with pytest.raises(UserError, match="another base"):
        load_beside(both[0], "other", other, trainable=False, scalar=True)
    with pytest.raises(UserError, match="no adapter"):
        load_beside(both[0], "other", tmp_path / "base", trainable=False, scalar=True)


def test_layers_that_the_policy_does_not_adapt(folder, tmp_path):
    policy = exact(saved(folder, tmp_path / "policy", 1, targets=("q_proj",)))
    reward = saved(folder, tmp_path / "reward", 2, head=True)
    with pytest.raises(UserError, match="does not fit beside"):
        load_beside(policy, "reward", reward, trainable=False, scalar=True)
