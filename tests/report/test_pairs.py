"""What judges preferred and reward models scored: numbers, cards, and files that say less than they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.report import pair_cards, scored, words
from longtake.report.files import Run, RunFile
from longtake.report.judged import compared, judging
from longtake.report.pair_files import Answer, Judged, Ruling, Scored, said
from longtake.report.read import Problems
from longtake.report.scored import longer_wins, rewarding
from longtake.report.strips import Strips

EXACT = 1e-12
PLAIN = str.maketrans({"\u202f": " ", "\u2212": "-"})
BOTH = (Answer("so left", 9, "stop", True), Answer("so right", 5, "stop", False))
JUDGE = Run("judge", Path("judge"), RunFile("judge"), (), (), (), None, None)
REWARD = Run("reward", Path("reward"), RunFile("reward"), (), (), (), None, None)


def strips() -> Strips:
    return Strips(0, Problems())


def kept(name: str, better: int | None, letters: str = "AB", outcome: str = "kept") -> Judged:
    """A judged pair whose first answer is right."""
    rulings = tuple(Ruling(order, letter) for order, letter in zip(("AB", "BA"), letters, strict=True))
    right = None if better is None else better == 0
    return Judged(name, outcome, BOTH, verdicts=rulings, better=better, right=right)  # type: ignore[arg-type]


def row(name: str, lead: float, chosen: int = 9, rejected: int = 5, **more: str) -> Scored:
    pair = Scored(name, lead / 2, -lead / 2, "left or right?", "so left", "so right", **more)
    return replace(pair, tokens_chosen=chosen, tokens_rejected=rejected)


def numbers(run: Run, rows: list[Judged]) -> dict[str, tuple[str, str]]:
    return {one.label: (one.value.translate(PLAIN), one.note.translate(PLAIN)) for one in judging(run, rows).numbers}


def test_the_numbers_of_a_judge() -> None:
    rows = [kept(f"q{i}", 0) for i in range(6)] + [kept(f"w{i}", 1, "BA") for i in range(2)]
    rows += [kept("f", None, "AA", "flipped"), kept("g", None, "AA", "flipped"), kept("t", None, ("A", ""), "tie")]  # type: ignore[arg-type]
    found = numbers(JUDGE, rows)
    assert found["pairs kept"] == ("8", "of 11 judged")
    assert found["right, of those kept"][0] == "75 %"
    assert found["right, of those kept"][1].endswith("n = 8")
    assert found["flip rate"][0] == "20 %"
    assert found["verdicts for slot A"][0] == "62 %", "13 of 21 that name a slot"
    assert found["longer one chosen"][0] == "75 %"
    assert found["calls"] == (words.DASH, f"cost {words.DASH}")
    assert [part.name for part in judging(JUDGE, rows).parts] == ["kept", "flipped with the order", "tie"]


def test_a_judge_that_always_says_the_same_slot_is_named() -> None:
    rows = [kept(f"q{i}", None, "AA", "flipped") for i in range(40)]
    texts = [one.text.translate(PLAIN) for one in judging(JUDGE, rows).verdicts]
    assert any("leans to the answer that stands first: 100 %" in text for text in texts)
    guess = [kept(f"q{i}", i % 2, "AB" if i % 2 == 0 else "BA") for i in range(40)]
    assert "Not clearly better than a coin" in judging(JUDGE, guess).verdicts[0].text
    lost = [kept(f"q{i}", None, "AB", "failed") for i in range(9)] + [kept("q", 0)]
    assert any("were never judged" in one.text for one in judging(JUDGE, lost).verdicts)


def test_judges_are_compared_on_pairs_that_both_judged() -> None:
    good, other = replace(JUDGE, name="judge"), replace(JUDGE, name="plain")
    first = [kept(f"q{i}", 0) for i in range(10)]
    second = [
        kept(f"q{i}", None if i < 4 else 0, "AA" if i < 4 else "AB", "flipped" if i < 4 else "kept") for i in range(12)
    ]
    panel = compared([(good, first), (other, second)])
    assert panel is not None
    assert [line.after.value for line in panel.rows] == [1.0, pytest.approx(10 / 12)]
    delta = panel.rows[1].delta
    assert delta is not None
    assert (delta.value, delta.n) == (pytest.approx(-0.2), 10)
    assert compared([(good, first)]) is None


def test_cards_show_what_there_is_to_learn_from() -> None:
    rows = [kept("a", 0), kept("b", 1, "BA"), kept("c", None, "AA", "flipped"), kept("d", None, "AB", "same")]
    assert [one.id for one in pair_cards.pick(rows, 9)] == ["b", "c", "a"], "wrong ones first, no two same answers"
    drawn = [*rows[:1], *(replace(one, strip="thumbs/x.jpg") for one in rows[2:3])]
    assert [one.id for one in pair_cards.pick(drawn, 9)] == ["c", "a"], "those with a filmstrip first"


def test_verdicts_name_the_answer_that_stood_in_their_slot() -> None:
    card = pair_cards.judged_card(JUDGE, kept("a", 1, "BA"), 0, {("a", "so right"): (2.0, -1.0)}, strips())
    assert [(one.order, one.means) for one in card.told] == [
        ("A: answer 1, B: answer 2", "answer 2"), ("A: answer 2, B: answer 1", "answer 2")
    ]  # fmt: skip
    assert [(side.chosen, side.model) for side in card.sides] == [(False, -1.0), (True, 2.0)]
    assert (card.gap, card.longer) == (3.0, -4)
    flipped = pair_cards.judged_card(
        JUDGE, kept("a", None, "AA", "flipped"), 0, {("a", "so left"): (2.0, -1.0)}, strips()
    )
    assert [(side.chosen, side.model) for side in flipped.sides] == [(None, None)] * 2
    assert [one.means for one in flipped.told] == ["answer 1", "answer 2"]
    rubric = replace(kept("a", 1), verdicts=(Ruling("0", "2"), Ruling("1", "4")))
    assert [(one.order, one.said) for one in pair_cards.judged_card(JUDGE, rubric, 0, {}, strips()).told] == [
        ("answer 1 by itself", "2"), ("answer 2 by itself", "4")
    ]  # fmt: skip


@pytest.mark.parametrize("verdicts", [(Ruling("AB", "B"), Ruling("BA", "A")), (Ruling("0", "2"), Ruling("1", "4"))])
def test_a_scored_pair_has_its_chosen_answer_first(verdicts: tuple[Ruling, Ruling]) -> None:
    """The judge chose its second answer, so its verdicts are turned with the answers."""
    judged = replace(kept("q", 1), answers=BOTH[::-1], verdicts=verdicts, strip=None)
    known = {pair_cards.key(judged): (JUDGE, judged)}
    card = pair_cards.scored_card(REWARD, row("q", -1.5), 0, known, strips())
    assert [side.answer.text for side in card.sides] == ["so left", "so right"]
    assert [side.answer.correct for side in card.sides] == [True, False], "what the judge's folder knows"
    assert (card.state, card.gap, card.longer) == ("wrong", -1.5, 4)
    if verdicts[0].order == "AB":
        assert {one.means for one in card.told} == {"answer 1"}, "both orders name the chosen answer"
    else:
        assert {(one.order, one.said) for one in card.told} == {
            ("answer 2 by itself", "2"),
            ("answer 1 by itself", "4"),
        }
    alone = pair_cards.scored_card(REWARD, row("other", 0.0), 0, known, strips())
    assert (alone.told, alone.state, alone.pair.question) == ((), "tie", "left or right?")


def test_the_numbers_of_a_reward_model() -> None:
    rows = [row(f"a{i}", 2.0) for i in range(6)] + [row("b", -1.0, 5, 9), row("c", 0.0, 7, 7)]
    found = {one.label: one.value.translate(PLAIN) for one in rewarding(REWARD, rows, {}, strips()).numbers}
    assert found["pairs in the right order"] == "81 %", "a tie counts half: 6.5 of 8"
    assert found["“the longer wins” gets"] == "81 %"
    assert longer_wins(rows) == 6.5 / 8
    assert found["right answer first"] == words.DASH
    cards = rewarding(REWARD, rows, {}, strips()).cards
    assert [card.pair.id for card in cards[:3]] == ["b", "c", "a0"], "most wrong first"


def test_a_reward_model_that_only_counts_tokens_is_named() -> None:
    rows = [row(f"q{i}", 0.3 * (i % 5 - 2) + 0.001, 10 + i % 5, 12) for i in range(60)]
    texts = [one.text.translate(PLAIN) for one in rewarding(REWARD, rows, {}, strips()).verdicts]
    assert any("It favours the longer answer" in text for text in texts)
    assert "Not clearly better than a coin" in texts[0]
    sure = [row(f"q{i}", 2.0 if i % 9 else -1.0, 12 + i % 3, 9) for i in range(60)]
    assert "“the longer answer wins”, which gets 100 %" in rewarding(REWARD, sure, {}, strips()).verdicts[
        0
    ].text.translate(PLAIN)


@given(st.lists(st.tuples(st.floats(-900, 900), st.integers(1, 99), st.integers(1, 99)), max_size=30))
def test_charts_of_any_scores_stay_inside_their_boxes(drawn: list[tuple[float, int, int]]) -> None:
    rows = [row(str(i), lead, a, b) for i, (lead, a, b) in enumerate(drawn)]
    found = rewarding(REWARD, rows, {}, strips())
    assert len(found.plots) == (2 if rows else 0)
    for plot in found.plots:
        for mark in (mark for trace in plot.traces for mark in trace.marks):
            assert 0 <= mark.x <= 400
            assert -1e-6 <= mark.high <= mark.y <= mark.low <= 190
        assert "nan" not in "".join(trace.path for trace in plot.traces)
    assert sum(int(text.text) for plot in found.plots for text in plot.texts) == len(rows)


def test_calibration_is_of_the_order_that_the_scores_say() -> None:
    claimed, right = scored._claims([row("a", -3.0), row("b", 3.0)])
    assert abs(claimed[0] - claimed[1]) < EXACT
    assert right == [False, True]


def test_text_of_messages() -> None:
    parts = [
        {"type": "video", "video": "a.mp4"},
        {"type": "text", "text": "left"},
        {"type": "text", "text": "or right?"},
    ]
    assert said([{"role": "user", "content": parts}]) == "left\nor right?"
    assert (said("plain"), said([]), said(None), said([{"role": "user"}]), said([3])) == ("plain", "", "", "", "")
