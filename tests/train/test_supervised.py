"""The pieces of supervised fine-tuning: the walk over rows, targets as tokens, and when a run ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.world import World, silent

from longtake.data.rows import read_examples, read_questions
from longtake.errors import UserError
from longtake.log import RunFolder, read_json
from longtake.recipes import sft
from longtake.records import Example, FramePolicy, Question, Span
from longtake.runtime.films import Look
from longtake.sim import tiny
from longtake.train.footage import decode, encode
from longtake.train.resume import Progress
from longtake.train.session import Session, open_session
from longtake.train.settings import Video
from longtake.train.supervised import backward_items, end_at, greedy_accuracy, item, longest, next_batch, tokens_of
from longtake.train.walk import Stage, Walk

WORDS = tiny.tokenizer()
END = WORDS.eos_token_id


@pytest.fixture
def session(world: World, tmp_path: Path) -> Session:
    config = sft.Config(rows=world.rows("sft"), model=world.model, out=tmp_path, video=world.video(), dtype="auto")
    return open_session(config, silent())


def examples(*batches: int) -> list[Example]:
    return [Example(Question(f"q{n}", None, "?", row={"batch": b}), ()) for n, b in enumerate(batches)]


def plain(rows: list[Example], size: int | None, shuffle: bool = False) -> Walk:
    return Walk((Stage(tuple(rows), 0),), size, shuffle, 0)


def walk(session: Session, rows: list[Example], size: int | None, steps: int, **settings: Any) -> list[list[str]]:
    """Ids of the questions of each step."""
    found = []
    for step in range(steps):
        taken = next_batch(session, plain(rows, size, **settings), Video(frames=(4, 8)))
        found.append([example.question.id for _, example in taken])
        progress = replace(session.progress, step=step + 1, taken=session.progress.taken + len(taken))
        session.progress = progress
    return found


def test_a_step_takes_the_next_questions(session: Session) -> None:
    assert walk(session, examples(*[0] * 5), 2, 4) == [["q0", "q1"], ["q2", "q3"], ["q4", "q0"], ["q1", "q2"]]


def test_a_step_takes_the_rows_of_one_batch(session: Session) -> None:
    assert walk(session, examples(0, 0, 0, 1, 7, 7), None, 4) == [
        ["q0", "q1", "q2"], ["q3"], ["q4", "q5"], ["q0", "q1", "q2"],
    ]  # fmt: skip


def test_one_batch_is_the_whole_file(session: Session) -> None:
    assert walk(session, examples(3, 3), None, 2) == [["q0", "q1"]] * 2


def test_shuffled_epochs_hold_every_question(session: Session) -> None:
    found = walk(session, examples(*[0] * 6), 3, 4, shuffle=True)
    assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == [f"q{n}" for n in range(6)]


def test_frames_of_a_step_do_not_depend_on_the_rest_of_the_batch(session: Session) -> None:
    rows = examples(*[0] * 40)
    video = Video(frames=(4, 8))
    many = next_batch(session, plain(rows, 40), video)
    few = next_batch(session, plain(rows, 3), video)
    assert few == many[:3]
    assert {look.policy.frames for look, _ in many} == {4, 8}
    session.progress = Progress(1, 0)
    later = next_batch(session, plain(rows, 40), video)
    assert [look.policy for look, _ in later] != [look.policy for look, _ in many]


def test_targets_are_words_with_weights_and_an_end() -> None:
    ids, weights = tokens_of(WORDS, END, (Span("<think> s0", 0.0), Span("left", 1.0), Span("so left", 0.5)))
    assert WORDS.decode(ids) == "<think> s0 left so left <|im_end|>"
    assert weights == (0.0, 0.0, 1.0, 0.5, 0.5, 0.5)
    assert tokens_of(WORDS, END, (Span("left", 0.0),)) == ((ids[2], END), (0.0, 0.0))


def test_the_longest_answer_is_of_all_that_a_question_has() -> None:
    asked = [Question(f"q{n}", None, "?") for n in range(2)]
    short, long = (Span("cup"),), (Span("cup "), Span("ball cup"))
    rows = [Example(asked[0], (short,)), Example(asked[1], (short, long)), Example(asked[1], (short,))]
    told: Any = SimpleNamespace(model=SimpleNamespace(tokenizer=WORDS, end_ids=(END,)))
    given = longest(told, rows)
    assert [given(question) for question in asked] == [len(tokens_of(WORDS, END, own)[0]) for own in (short, long)]


def test_an_item_is_a_prompt_with_all_its_answers(session: Session, world: World) -> None:
    example = read_examples(world.rows("sft"))[0]
    asked = example.question
    ((look, _),) = next_batch(session, plain([example], 1), world.video(4))
    encode(session.films, [look], silent())
    made = item(session, look, example)
    assert made.prompt.id == asked.id
    assert [WORDS.decode(ids) for ids in made.ids] == [f"{spans[0].text} <|im_end|>" for spans in example.targets]
    assert [set(weights) for weights in made.weights] == [{spans[0].weight} for spans in example.targets]
    assert made.tokens == len(made.prompt.ids) + sum(map(len, made.ids))
    sums, count = backward_items(session, [made], 10**6)
    assert count == pytest.approx(sum(map(sum, made.weights)))
    assert sums.loss > 0


def test_a_step_without_weights_is_refused(session: Session, world: World) -> None:
    example = Example(Question("idle", None, "what happens ?"), ((Span("left", 0.0),),))
    ((look, _),) = next_batch(session, plain([example], 1), Video())
    with pytest.raises(UserError, match="nothing to learn") as caught:
        backward_items(session, [item(session, look, example)], 100)
    assert "idle" in str(caught.value)


@pytest.mark.parametrize(
    ("step", "accuracy", "said"),
    [(4, 0.5, ""), (4, 0.8, "0.800 reached 0.8 at step 4"), (9, 0.5, "cap of 9 steps"), (9, 0.9, "reached 0.8")],
)
def test_a_run_ends_at_the_gate_or_at_the_cap(
    session: Session, tmp_path: Path, step: int, accuracy: float, said: str
) -> None:
    log = silent()
    log.open(RunFolder.open(tmp_path / "run", "sft", {}))
    session.progress = Progress(step, 40)
    end_at(session, accuracy, 0.8, 9, log)
    assert session.progress.done == bool(said)
    assert said in session.progress.reason
    assert read_json(tmp_path / "run" / "run.json")["notes"] == ([session.progress.reason] if said else [])


def test_greedy_accuracy_is_the_share_of_right_answers(
    session: Session, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FramePolicy(frames=4, max_pixels=tiny.PIXELS)
    questions = decode(session.films, read_questions(world.rows("rl")), world.video(4), silent())
    looks = [Look(question, policy) for question in questions]
    found = greedy_accuracy(session, looks, 4, silent())
    assert found * 8 == int(found * 8)
    truth: Callable[[str, Question], float] = lambda text, question: float(question.kind in ("goal", "plot"))  # noqa: E731
    monkeypatch.setattr("longtake.train.rollout.accuracy", truth)
    assert greedy_accuracy(session, looks, 4, silent()) == 0.5
