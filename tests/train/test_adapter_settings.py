"""What is trained: nothing that is set goes without effect."""

import pytest

from longtake.config import ConfigError, Given, resolve
from longtake.train.adapter_settings import Adapter


def read(**given):
    return resolve(Adapter, [Given(name, value, f"--{name}") for name, value in given.items()]).config


def test_by_default_it_is_a_lora_of_rank_32():
    assert (read().kind, read().rank, read(kind="alora").alpha) == ("lora", 32, 64.0)


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 8},
        {"alpha": 8},
        {"targets": ["q_proj"]},
        {"quantize": "nf4"},
        {"rank": 32},
    ],
)
def test_what_would_have_no_effect_is_refused(given):
    with pytest.raises(ConfigError, match="no effect on full fine-tuning"):
        read(**given | {"kind": "full"})
    assert read(**given)
    assert read(**given | {"kind": "alora"})


@pytest.mark.parametrize(
    "given", [{"rank": 0}, {"alpha": 0}, {"targets": []}, {"quantize": "int8"}, {"kind": "dora"}, {"dropout": 0.1}]
)
def test_wrong_values(given):
    with pytest.raises(ConfigError):
        read(**{"kind": "lora"} | given)
