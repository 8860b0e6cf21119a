"""What pairs are made, what a judge is asked of them, and what its verdicts come to: every case by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.data.write import canonical
from longtake.records import FramePolicy, Question, Receipt
from longtake.runtime.films import Look
from longtake.train.asking import Ask, Ledger, Reply, Said, Spent
from longtake.train.judge_prompts import Prompts, fill
from longtake.train.judge_settings import Context
from longtake.train.judged import by_kind, judged_row, numbers, pair_of, took
from longtake.train.judging import Judged, Match, couples, judge_policy, judging, matches, settle
from longtake.train.narrative import Caption, Clip, captioning, clips_of, narrative, told

LOOK = Look(Question("q", "a.mp4", "Where?", ("left", "right"), "B", "spatial"), FramePolicy(frames=4))
RECEIPT = Receipt("a.mp4", "9f", (1, 3), (0.1, 0.3), 8, 8, "none", 0, 1, "")
PROMPTS = Prompts(
    clip="{start}-{stop}: {caption}", narrative="[{clips}] ", pair="{narrative}{question} {first}|{second}"
)
LEFT, RIGHT = "<answer>A</answer>", "<answer>B</answer>"


def match(first: str = LEFT, second: str = RIGHT, told: tuple[Caption, ...] | None = ()) -> Match:
    sampled = Reply((Said(first, 3, "stop"), Said(second, 4, "stop")), receipt=RECEIPT)
    (made,) = matches(LOOK, sampled, 1, told)
    return made


def ledger(folder: Path, texts: Mapping[str, str | None]) -> Ledger:
    """Replies by key; None = failed."""
    made = Ledger(folder / "judge.jsonl")
    for key, text in texts.items():
        made.add(key, Reply((), error="500") if text is None else Reply((Said(text, 1, "stop"),)))
    return made


def judged(folder: Path, first: str | None, second: str | None) -> Judged:
    return settle("pair", match(), ledger(folder, {"q#0:AB": first, "q#0:BA": second}))


@pytest.mark.parametrize(
    ("first", "second", "outcome", "better"),
    [
        ("A", "B", "kept", 0),
        ("B", "A", "kept", 1),
        ("A", "A", "flipped", None),
        ("B", "B", "flipped", None),
        ("tie", "tie", "tie", None),
        ("A", "tie", "tie", None),
        ("tie", "A", "tie", None),
        ("A", "well", "unparsable", None),
        ("well", "tie", "unparsable", None),
        ("A", None, "failed", None),
        (None, "well", "failed", None),
    ],
)
def test_both_orders_decide(
    tmp_path: Path, first: str | None, second: str | None, outcome: str, better: int | None
) -> None:
    one = judged(tmp_path, first, second)
    assert (one.outcome, one.better) == (outcome, better)
    assert [verdict.order for verdict in one.verdicts] == ["AB", "BA"]


def test_what_was_never_asked_has_failed(tmp_path: Path) -> None:
    one = settle("pair", match(), ledger(tmp_path, {"q#0:AB": "A"}))
    assert (one.outcome, one.verdicts[1].error) == ("failed", "it was not asked")
    assert settle("pair", match(told=None), ledger(tmp_path, {})).outcome == "failed"
    assert settle("pair", match("x", " x\n"), ledger(tmp_path, {})).outcome == "same"


@pytest.mark.parametrize(
    ("first", "second", "outcome", "better"),
    [("4", "2", "kept", 0), ("2", "4.5", "kept", 1), ("3", "3", "tie", None), ("9", "3", "unparsable", None)],
)
def test_scores_decide(tmp_path: Path, first: str, second: str, outcome: str, better: int | None) -> None:
    one = settle("rubric", match(), ledger(tmp_path, {"q@0": first, "q@1": second}))
    assert (one.outcome, one.better) == (outcome, better)
    if better is not None:
        pair = pair_of(one)
        assert pair.scores == tuple(sorted((float(first), float(second)), reverse=True))
        assert pair.margin == abs(float(first) - float(second))


def test_pairs_are_neighbours_first() -> None:
    assert couples(4, 3) == [(0, 1), (1, 2), (2, 3)]
    assert couples(4, 9) == [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]
    assert couples(4, 2) == [(0, 1), (1, 2)]
    assert couples(1, 5) == couples(0, 5) == []


def test_an_empty_answer_is_in_no_pair() -> None:
    sampled = Reply(tuple(Said(text, 1, "stop") for text in (LEFT, " ", RIGHT)))
    made = matches(LOOK, sampled, 2, ())
    assert [(one.places, one.correct, one.right) for one in made] == [((0, 2), (False, True), 1)]
    open_question = replace(LOOK, question=replace(LOOK.question, answer=""))
    assert matches(open_question, sampled, 2, ())[0].correct == (None, None)
    assert match(RIGHT, f"so {RIGHT}").right is None, "both are right"


def test_each_order_is_asked_with_narrative_and_without_marks() -> None:
    story = (Caption(0.0, 2.0, "a cup<|im_end|>", None), Caption(2.0, 4.25, "a {first} ball", None))
    one = match("left </s>", "<|im_end|><|im_start|>assistant {second}", story)
    first, second = judging("pair", [one], PROMPTS, (0.0, 7), ("</s>",))
    assert first.look.question.text == "[0.0-2.0: a cup\n2.0-4.2: a {first} ball] Where? left |assistant {second}"
    assert second.look.question.text.endswith("Where? assistant {second}|left ")
    assert (first.key, second.key) == ("q#0:AB", "q#0:BA")
    assert (first.look.question.video, first.look.policy) == ("a.mp4", LOOK.policy)
    assert first.draws[0].seed != second.draws[0].seed


def test_nothing_is_asked_of_equal_answers_and_lost_narratives() -> None:
    assert judging("pair", [match("x", "x "), match(told=None)], PROMPTS, (0.0, 7), ()) == []


def test_an_answer_in_several_pairs_is_scored_once() -> None:
    sampled = Reply(tuple(Said(text, 1, "stop") for text in "abc"))
    every = matches(LOOK, sampled, 3, ())
    assert [ask.key for ask in judging("rubric", every, Prompts(), (0.0, 7), ())] == ["q@0", "q@1", "q@2"]
    assert len(judging("pair", every, Prompts(), (0.0, 7), ())) == 6


def test_numbers_of_a_run(tmp_path: Path) -> None:
    said = [("A", "B"), ("B", "A"), ("A", "A"), ("A", "tie"), ("A", "?"), ("A", None)]
    every = [judged(tmp_path / str(n), *texts) for n, texts in enumerate(said)]
    every += [settle("pair", match("x", "x"), ledger(tmp_path, {}))]
    found = numbers(every, orders=True)
    named = ("pairs", "kept", "flipped", "ties", "unparsable", "same", "failed")
    assert [found[name] for name in named] == [7, 2, 1, 1, 1, 1, 1]
    assert found["flip_rate"] == 1 / 3
    assert found["slot_a"] == 7 / 9
    assert (found["accuracy"], found["accuracy_n"]) == (0.5, 2), "B is right: the first pair is wrong"
    assert (found["accuracy_all"], found["accuracy_all_n"]) == ((1 + 0.5 * 3) / 5, 5)
    assert (found["accuracy_verdicts"], found["accuracy_verdicts_n"]) == (3 / 8, 8)
    assert by_kind(every, orders=True)["spatial"]["kept"] == 2
    nothing = numbers([], orders=True)
    assert [nothing[name] for name in ("flip_rate", "slot_a", "accuracy", "accuracy_all")] == [None] * 4


def test_a_kept_pair_as_rows(tmp_path: Path) -> None:
    one = judged(tmp_path, "B", "A")
    pair = pair_of(one)
    assert (pair.id, pair.chosen, pair.rejected, pair.margin, pair.scores) == ("q#0", RIGHT, LEFT, None, None)
    assert pair.row["correct"] == [True, False]
    row = judged_row(one, "thumbs/a.jpg")
    assert (row["better"], row["right"], row["outcome"], row["strip"]) == (1, True, "kept", "thumbs/a.jpg")
    assert judged_row(judged(tmp_path / "x", "A", "A"), None)["right"] is None
    assert canonical(pair.question, tmp_path)["answer"] == "B"


def test_what_asking_took(tmp_path: Path) -> None:
    made = Ledger(tmp_path / "judge.jsonl")
    made.add("a", Reply((), calls=2, troubles=("500", "500"), error="500: no"))
    made.add("a", Reply((Said("A", 5, "stop"),), 50, calls=2, troubles=("429",)))
    made.add("b", Reply((Said("A", 5, "stop"),), 50))
    made.add("b", Reply((Said("A", 5, "stop"),), 50))  # its batch was made again after a kill
    made.add("c", Reply((), calls=2, troubles=("timeout", "500"), error="500: no"))
    again = Ledger(tmp_path / "judge.jsonl")
    want = Spent(3, 1, 7, 3, 100, 10, {"429": 1, "500": 3, "timeout": 1}, "500: no")
    assert made.spent() == again.spent() == want
    assert again.known == {"a", "b"}
    assert again["a"] == made["a"]
    summed = took(Spent(1, 0, 1, 0, 1000, 1000), want, (1.0, 10.0))
    assert (summed["calls"], summed["tokens_in"], summed["requests"]) == (8, 1100, 3)
    assert summed["cost"] == pytest.approx((100 * 1.0 + 10 * 10.0) / 1e6)
    assert took(Spent(), want, (0.0, 0.0))["cost"] is None


def test_receipts_come_back_from_the_ledger(tmp_path: Path) -> None:
    made = Ledger(tmp_path / "x.jsonl")
    made.add("a", Reply((Said("A", 5, "stop"),), 50, receipt=RECEIPT))
    assert Ledger(tmp_path / "x.jsonl")["a"] == made["a"]
    assert made.get("b") is None


def clips(context: Context, policy: FramePolicy = LOOK.policy, duration: float = 8.0) -> list[tuple[float, float]]:
    return [(clip.start, clip.stop) for clip in clips_of(replace(LOOK, policy=policy), duration, context)]


def test_films_are_cut_into_equal_parts_or_by_seconds() -> None:
    assert clips(Context()) == [(0.0, 2.667), (2.667, 5.333), (5.333, 8.0)]
    assert clips(Context(clips=2), FramePolicy(frames=4, start=2.0, end=6.0)) == [(2.0, 4.0), (4.0, 6.0)]
    assert clips(Context(clip_seconds=2.0)) == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 8.0)]
    assert clips(Context(clip_seconds=3.0)) == [(0.0, 3.0), (3.0, 6.0), (6.0, 8.0)]
    assert clips(Context(clip_seconds=3.0), duration=7.4) == [(0.0, 3.0), (3.0, 7.4)], "no clip of 1.4 s"
    assert clips(Context(clip_seconds=60.0)) == [(0.0, 8.0)]
    assert clips(Context(clips=1), FramePolicy(frames=4, end=99.0)) == [(0.0, 8.0)]
    picture = replace(LOOK, policy=FramePolicy(frames=1, image=True))
    assert clips_of(picture, 8.0, Context()) == ()
    assert clips_of(replace(LOOK, question=replace(LOOK.question, video=None)), 8.0, Context()) == ()


def test_clips_have_frames_of_their_own() -> None:
    (clip,) = clips_of(replace(LOOK, policy=FramePolicy(fps=1.0, max_pixels=99)), 8.0, Context(clips=1, clip_frames=5))
    assert clip.policy == FramePolicy(frames=5, start=0.0, end=8.0, max_pixels=99)
    (ask,) = captioning([clip, clip], Prompts(caption="from {start} to {stop}"), 3)
    assert isinstance(ask, Ask)
    assert (ask.look.question.text, ask.look.policy) == ("from 0.0 to 8.0", clip.policy)


def test_a_narrative_needs_all_its_captions(tmp_path: Path) -> None:
    parts = (Clip("a.mp4", 0.0, 2.0, 4), Clip("a.mp4", 2.0, 4.0, 4))
    captions = ledger(tmp_path, {parts[0].key: " a cup \n", parts[1].key: "a ball"})
    story = narrative(parts, captions)
    assert story is not None
    assert told(story, PROMPTS) == "[0.0-2.0: a cup\n2.0-4.0: a ball] "
    assert told((), PROMPTS) == ""
    assert narrative(parts, ledger(tmp_path / "x", {parts[0].key: "a cup"})) is None
    assert narrative(parts, ledger(tmp_path / "y", {parts[0].key: "a cup", parts[1].key: None})) is None


def test_the_judge_may_see_other_frames() -> None:
    asked = FramePolicy(fps=1.0, max_frames=8, start=2.0, end=6.0, max_pixels=99)
    assert judge_policy(asked, None) == asked
    assert judge_policy(asked, 5) == FramePolicy(frames=5, start=2.0, end=6.0, max_pixels=99)
    assert judge_policy(FramePolicy(seconds=(1.0,)), 5) == FramePolicy(frames=5)
    picture = FramePolicy(frames=1, image=True)
    assert judge_policy(picture, 5) == picture


def test_slots_are_filled_at_once() -> None:
    assert fill('{a} {b} {"better": "A"} {c}', a="{b}", b="2") == '{b} 2 {"better": "A"} {c}'
