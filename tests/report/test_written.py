"""What the stages write is what the report reads: their own writers, its own readers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.fake import receipt, write_lines

from longtake.data.pairs import write_pair
from longtake.log.files import write_jsonl
from longtake.recipes import reward
from longtake.records import FramePolicy, Question
from longtake.report import watch
from longtake.report.files import Run, RunFile
from longtake.report.judged import judging
from longtake.report.pair_cards import key
from longtake.report.pair_files import judged, scored
from longtake.report.read import Problems
from longtake.runtime.films import Look
from longtake.train.asking import Said
from longtake.train.judged import judged_row, numbers, pair_of
from longtake.train.judging import Judged, Match, Verdict
from longtake.train.narrative import Caption
from longtake.train.preference import told
from longtake.train.ranking import Ranked, measured
from longtake.train.step import Sums

SEEN = receipt("7", 8)


def match(number: int) -> Match:
    question = Question(f"q{number}", "films/7.mp4", "left or right?", ("left", "right"), "A", "spatial")
    said = Said("so right, at 2.0 s <answer>B</answer>", 9, "stop"), Said("<answer>A</answer>", 5, "stop")
    told = Caption(0.0, 4.0, "a cup moves", SEEN), Caption(4.0, 8.0, "it stops", None)
    return Match(f"q{number}#0", Look(question, FramePolicy(frames=8)), (0, 1), said, (False, True), told, SEEN)


KEPT = tuple(Verdict(order, said, "because", "", "stop") for order, said in (("AB", "B"), ("BA", "A")))
FLIPPED = tuple(Verdict(order, "A", "because", "", "stop") for order in ("AB", "BA"))
SCORES = Verdict("0", "2", "", "", "stop"), Verdict("1", "4", "", "", "stop")
EVERY = [
    *(Judged(match(i), KEPT, "kept", 1) for i in range(3)),
    *(Judged(match(i), FLIPPED, "flipped") for i in (3, 4)),
    Judged(match(5), SCORES, "kept", 1, (2.0, 4.0)),
    Judged(match(6), (), "failed"),
]


def test_a_judges_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "judged.jsonl", [judged_row(one, "thumbs/7.jpg") for one in EVERY])
    problems, run = Problems(), Run("", tmp_path, RunFile("judge"), (), (), (), None, None)
    rows = judged(run, problems)
    assert problems.said == []
    assert [row.outcome for row in rows] == [one.outcome for one in EVERY]
    assert [row.worth for row in rows] == [1.0, 1.0, 1.0, 0.5, 0.5, 1.0, None]
    assert rows[0].narrative is not None
    assert [(clip.start, clip.stop, clip.caption) for clip in rows[0].narrative][1] == (4.0, 8.0, "it stops")
    assert (rows[0].receipt, rows[0].strip, rows[0].better, rows[0].kind) == (SEEN, "thumbs/7.jpg", 1, "spatial")
    assert [answer.score for answer in rows[5].answers] == [2.0, 4.0]
    told, found = numbers(EVERY[:5], orders=True), judging(run, rows[:5])
    shown = {one.label: one.value.replace("\u202f", "") for one in found.numbers}
    assert shown["flip rate"] == f"{told['flip_rate']:.0%}"
    assert shown["verdicts for slot A"] == f"{told['slot_a']:.0%}"
    assert shown["right, of those kept"] == f"{told['accuracy']:.0%}"


def test_a_reward_models_rows(tmp_path: Path) -> None:
    pairs = [pair_of(one) for one in EVERY if one.outcome == "kept"]
    ranked = [Ranked(pair, "judge", 1.0 - i, 0.5, (6, 10)) for i, pair in enumerate(pairs)]
    write_jsonl(tmp_path / "scores.jsonl", [reward.row_of(one, tmp_path) for one in ranked])
    write_lines(tmp_path / "judged.jsonl", [judged_row(one, None) for one in EVERY])
    problems, run = Problems(), Run("", tmp_path, RunFile("reward"), (), (), (), None, None)
    rows = scored(run, problems)
    assert problems.said == []
    assert [row.lead for row in rows] == [one.lead for one in ranked]
    assert {row.lengths for row in rows} == {(6, 10)}
    assert [row.correct for row in rows] == [(True, False)] * 4
    assert [ruling.said for ruling in rows[0].verdicts] == ["B", "A"]
    assert (rows[0].receipt, rows[3].score_chosen, rows[3].score_rejected) == (SEEN, 4.0, 2.0)
    known = {key(row) for row in judged(run, problems)}
    texts = {write_pair(pair, tmp_path)["chosen"][0]["content"] for pair in pairs}
    assert {(row.id, frozenset({*texts, EVERY[0].match.answers[0].text})) for row in rows} <= known
    assert measured(ranked)["accuracy"] == pytest.approx(0.25), "as the page counts it"


def test_metrics_have_the_names_that_the_page_draws_together() -> None:
    sums = Sums(tokens=2.0, watched={"right": 1.0, "margin": 1.0, "chosen": 1.0, "rejected": 1.0, "tokens": 9.0})
    drawn = {name for _, _, parts in watch.PAIRS for name, _, _ in parts if not name.startswith("held_")}
    assert drawn == told(sums).keys()
