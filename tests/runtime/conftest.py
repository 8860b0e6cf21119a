"""The tiny networks, made once."""

import pytest
from tests.models import tiny
from tests.runtime.cached import bits, open_store, requests

from longtake.runtime.features import prepare


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exact(folder):
    return tiny.exact(folder)


@pytest.fixture(scope="session")
def model(folder):
    return tiny.load_model(folder, device="cpu")


@pytest.fixture(scope="session")
def whole(model, tmp_path_factory):
    """Bits of a run that nobody disturbed."""
    store = open_store(tmp_path_factory.mktemp("whole"))
    assert prepare(store, model, requests(), chunk=2) == 7
    return bits(store)
