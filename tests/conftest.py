"""What several folders share: one small world of films, and arithmetic that does not depend on the number of cores."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers

if TYPE_CHECKING:
    from tests.world import World


# the same examples on every run, alone or among others: a suite that is red by chance teaches people to run it again
slow = hypothesis.HealthCheck.too_slow
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[slow])
hypothesis.settings.load_profile("fixed")
# else it draws numbers and texts that stand in the modules of ours that happen to be loaded
providers._get_local_constants = lambda: providers._local_constants


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C works in what tests start, also where the suite itself was started in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from tests import world as make

    return make.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on how sums are split between threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
