"""How items become rows over ranks, and a sweep of every way to learn from them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.ranks import run
from tests.train import test_ranks
from tests.train.paired import items
from tests.train.test_ranks import CLIPPED, DPO, KINDS, MANY, Q3, Q25, SCORES, XENT, Case, every_mesh, learned

from longtake.parallel.axis import Axis
from longtake.parallel.ranks import Ranks
from longtake.train import rows
from longtake.train.step import Passes

every, runs = test_ranks.every, test_ranks.runs  # fixtures
MORE = {  # every way, for each adapter
    f"{kind} {name} {keep} {row_tokens}": Case(kind, goal, Passes(keep, answer_tokens, tile=6), row_tokens)
    for kind in KINDS
    for name, goal in (("cross entropy", XENT), ("clipped", CLIPPED), ("pairs", DPO), ("scalars", SCORES))
    for keep in ("graph", "layers", "attention", "host")
    for row_tokens, answer_tokens in ((MANY, MANY), (100, 6))
    if kind != "alora" or keep == "graph"  # nothing is kept of its prefixes
}


def test_every_replica_has_a_row_and_a_film_its_questions(every: dict[str, Any]) -> None:
    """Three questions on the first film, one without, two on the second."""
    one = every[Q25]["full"]
    one.prefixes, one.passes = None, Passes()
    for count, want in (
        (1, ["012345"]),
        (2, ["012", "345"]),
        (3, ["012", "345"]),
        (4, ["012", "345"]),
        (6, ["012", "3", "45"]),
    ):
        one.films.ranks = Ranks(data=Axis(0, count))
        found = rows._runs(one, items(one, scored=False), MANY)
        assert ["".join(item.prompt.id for item in run) for run in found] == want
    assert [len(run) for run in rows._runs(one, items(one, scored=False), 1)] == [1] * 6


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("family", [Q3, Q25])
def test_every_way_to_learn(runs: dict[str, Any], size: int) -> None:
    want = {name: learned(runs, case, Ranks()) for name, case in MORE.items()}
    run(size, every_mesh, runs, want, MORE)
