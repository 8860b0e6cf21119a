"""The tiny networks, made once."""

import pytest
from tests.models import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exact(folder):
    return tiny.exact(folder)
