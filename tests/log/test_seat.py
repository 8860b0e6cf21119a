"""Several ranks that run one command: the first owns the run folder, all get its verdict, each keeps its own text."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.log import Log, begin, finish, read_json, read_jsonl
from longtake.log.folder import AnotherRun


class Settings:
    """Stands for a pydantic model."""

    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def model_dump(self, *, mode: str, exclude_defaults: bool = False) -> dict[str, Any]:
        return {"lr": self.lr}


def in_turn(work: Callable[[Log], Any], ranks: int = 2) -> list[Any]:
    """[ranks] what `work` returns or raises on every rank, one after the other, and their logs."""
    said: list[bytes] = []  # by rank 0, call by call

    def run(rank: int) -> Any:
        heard = iter(said)
        log = Log(stream=io.StringIO(), rank=rank, ranks=ranks)

        def agree(thing: Any) -> Any:
            if rank == 0:
                said.append(pickle.dumps(thing))
            word = said[-1] if rank == 0 else next(heard, None)
            assert word is not None, "the first rank has not said anything"
            return pickle.loads(word)

        log.agree = agree
        try:
            return work(log), log
        except UserError as error:
            return error, log

    return [run(rank) for rank in range(ranks)]


def started(out: Path, lr: float = 0.1, fresh: bool = False) -> Callable[[Log], Any]:
    return lambda log: begin(log, "sft", Settings(lr), out, fresh=fresh, reads=[], makes=["summary.json"])


def test_one_rank_alone_agrees_with_itself_and_keeps_no_text(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    assert log.leads
    assert log.first(lambda: 3) == 3
    started(tmp_path)(log)
    assert not (tmp_path / "ranks").exists()
    assert read_json(tmp_path / "run.json")["machine"]["ranks"] == 1


def test_the_first_rank_works_for_all() -> None:
    calls: list[int] = []

    def work(log: Log) -> Any:
        return log.first(lambda: calls.append(log.rank) or {"from": log.rank})

    assert [found for found, _ in in_turn(work, 3)] == [{"from": 0}] * 3
    assert calls == [0]


def test_what_the_first_rank_may_not_no_rank_may(tmp_path: Path) -> None:
    in_turn(lambda log: (started(tmp_path)(log), log.leads and log.step(1, 2, {})))
    errors = [error for error, _ in in_turn(started(tmp_path, lr=0.2))]
    assert {type(error) for error in errors} == {AnotherRun}
    assert len({str(error) for error in errors}) == 1
    assert errors[1].where == str(tmp_path)
    assert errors[1].fix.startswith("choose another --out")


def test_a_run_that_had_ended_gives_every_rank_its_result(tmp_path: Path) -> None:
    def work(log: Log) -> Any:
        if known := started(tmp_path)(log):
            return "known", known
        return finish(log, {"steps": 3 + log.rank})

    assert [found for found, _ in in_turn(work)] == [{"steps": 3}, {"steps": 3}]
    assert read_json(tmp_path / "summary.json") == {"steps": 3}
    assert read_json(tmp_path / "run.json")["status"] == "done"
    assert [found for found, _ in in_turn(work)] == [("known", {"steps": 3})] * 2


def test_only_the_first_rank_writes_and_speaks_and_all_take_every_call(tmp_path: Path) -> None:
    def work(log: Log) -> None:
        assert started(tmp_path)(log) is None
        assert (log.folder is not None) == log.leads
        with log.phase("rollout"), log.progress("films", 2) as films:
            films.advance()
            log.share("hit", 1, 2)
        log.count("cache", lambda: {"kept": 1})
        log.note(f"note of {log.rank}")
        log.step(1, 2, {"loss": 0.5 + log.rank})
        log.cut_after(1)
        log.summary({"rank": log.rank})
        log.say("words")
        log.ended(f"failed on {log.rank}")

    (_, first), (_, other) = in_turn(work)
    assert read_json(tmp_path / "run.json")["notes"] == ["note of 0"]
    assert read_json(tmp_path / "run.json")["status"] == "failed on 0"
    assert read_json(tmp_path / "run.json")["machine"]["ranks"] == 2
    assert [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0.5]
    assert '"note": "note of 0"' in first.stream.getvalue()
    assert other.stream.getvalue() == ""


def test_each_rank_keeps_a_text_through_all_sittings(tmp_path: Path) -> None:
    def work(log: Log) -> None:
        started(tmp_path)(log)
        with log.phase("rollout"):
            log.note(f"note of {log.rank}")
        log.step(1, 2, {"loss": 0.5})

    for _ in range(2):
        in_turn(work)
    assert {path.name for path in tmp_path.glob("ranks/*")} == {"0.log", "1.log"}
    for rank in (0, 1):
        lines = (tmp_path / "ranks" / f"{rank}.log").read_text().splitlines()
        texts = [line[len("2026-01-01 00:00:00 ") :] for line in lines]
        assert texts[0].startswith(f"rank {rank} of 2, process ")
        assert texts[1:4] == ["phase rollout", f"note of {rank}", "step 1 of 2"]
        assert texts[5:] == texts[1:4]


def test_a_rank_whose_text_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "ranks" / "1.log").mkdir(parents=True)
    (_, _), (error, _) = in_turn(started(tmp_path))
    assert str(error).startswith("cannot write here")


def test_fresh_begins_with_texts_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for fresh in (False, True):
        in_turn(started(out, fresh=fresh))
    assert [len((place / "ranks" / "1.log").read_text().splitlines()) for place in (out, tmp_path / "run.old-1")] == [
        1,
        1,
    ]


def test_the_place_is_phase_and_row_until_the_phase_is_over() -> None:
    log, seen = Log(stream=io.StringIO()), []
    log.moved = lambda: seen.append(log.place)
    with log.phase("rollout"):
        log.at("question cups-7")
        with log.phase("prefill"):
            pass
    log.at("row 3")
    outer, row, after = "rollout", "question cups-7", "after phase rollout"
    assert seen == [(outer, ""), (outer, row), ("prefill", row), (outer, row), (after, ""), (after, "row 3")]


def test_the_place_of_a_failure_is_kept() -> None:
    log = Log(stream=io.StringIO())
    with contextlib.suppress(ZeroDivisionError), log.phase("update"), log.phase("prefill"):
        log.at("question cups-7")
        raise ZeroDivisionError
    assert log.place == ("prefill", "question cups-7")


def test_whatever_is_told_is_a_sign_of_life() -> None:
    log = Log(stream=io.StringIO())
    for told in (
        lambda: log.show("films", 1, 2, ""),
        lambda: log.at("x"),
        lambda: log.note("x"),
        lambda: log.step(1, 2, {}),
    ):
        before = log.moves
        told()
        assert log.moves > before


def test_an_aside_is_shown_and_not_kept(tmp_path: Path) -> None:
    (_, log), _ = in_turn(started(tmp_path))
    log.aside("rank 1 is slow")
    assert read_json(tmp_path / "run.json")["notes"] == []
    assert "rank 1 is slow" in log.stream.getvalue()
    assert "rank 1 is slow" in (tmp_path / "ranks" / "0.log").read_text()
