"""Answers with their scores, and what of them is kept on disk for the report."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.world import World, silent

from longtake.data.rows import read_questions
from longtake.engines.local import LocalEngine
from longtake.log import read_jsonl
from longtake.records import Draw, FramePolicy, Group, Question
from longtake.report.files import Rollout as RolloutFile
from longtake.report.read import Problems, read_lines
from longtake.rewards.mix import Mix
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model
from longtake.sim.tiny import PIXELS
from longtake.train import keep as keeping
from longtake.train.footage import encode, open_films
from longtake.train.keep import keep
from longtake.train.keys import keyed
from longtake.train.rollout import Rollout, draws, rollout, score

RIGHT = "<think> so left </think> <answer> left </answer>"
ASKED = Question("q", None, "where ? A left B right", ("left", "right"), "A", "spatial", 2)
HEATS = (1.0, 1.0, 0.0)
REWARD = Mix({"accuracy": 1.0, "format": 0.1})


@pytest.fixture(scope="module")
def films(world: World, tmp_path_factory: pytest.TempPathFactory) -> Films:
    model = load_model(world.model, device="cpu")
    return open_films(model, world.video(), tmp_path_factory.mktemp("run"), frozen=True)


@pytest.fixture(scope="module")
def looks(world: World, films: Films) -> list[Look]:
    made = [Look(q, FramePolicy(frames=4, max_pixels=PIXELS)) for q in read_questions(world.rows("rl"))[:3]]
    made.append(Look(replace(ASKED, id="text"), FramePolicy(frames=4)))
    encode(films, made, silent())
    return made


@pytest.fixture(scope="module")
def answered(films: Films, looks: list[Look]) -> Rollout:
    engine = LocalEngine(films.model, films.features, "v1")
    return rollout(engine, films, looks, HEATS, REWARD, 6, 0, "test", 3)


def test_a_draw_hangs_on_occasion_question_and_place() -> None:
    assert draws(ASKED, HEATS, 0, "test", 3) == [
        Draw(heat, keyed(0, "test", 3, "q", place)) for place, heat in enumerate(HEATS)
    ]
    assert not set(draws(ASKED, HEATS, 0, "test", 4)) & set(draws(ASKED, HEATS, 0, "test", 3))


def test_every_question_gets_its_answers(answered: Rollout, looks: list[Look]) -> None:
    assert answered.looks == tuple(looks)
    assert [group.prompt.id for group in answered.groups] == ["q0", "q1", "q2", "text"]
    seeds = [[draw.seed for draw in draws(look.question, HEATS, 0, "test", 3)] for look in looks]
    assert [[answer.seed for answer in group.answers] for group in answered.groups] == seeds
    assert answered.reward_NG.shape == answered.length_NG.shape == (4, 3)
    assert answered.length_NG.tolist() == [[len(a.ids) for a in group.answers] for group in answered.groups]
    for look, group, scores in zip(answered.looks, answered.groups, answered.scores, strict=True):
        assert list(scores) == [score(answer.text, look.question, REWARD) for answer in group.answers]


def test_a_right_answer_in_the_right_form() -> None:
    best = score(RIGHT, ASKED, REWARD)
    assert (best.reward, best.correct, best.formed) == (pytest.approx(1.1), True, True)
    assert dict(best.parts) == {"accuracy": 1.0, "format": 1.0}
    formless = score("<answer> right </answer>", ASKED, REWARD)
    assert (formless.reward, formless.correct, formless.formed) == (0.0, False, False)


def test_right_or_wrong_is_watched_without_being_rewarded() -> None:
    assert score(RIGHT, ASKED, Mix({"format": 1.0})).correct is True
    assert score(RIGHT, replace(ASKED, answer=""), Mix({"format": 1.0})).correct is None


def test_shares_over_the_answers_that_can_be_checked(answered: Rollout) -> None:
    good, bad = score(RIGHT, ASKED, REWARD), score("no", ASKED, REWARD)
    unknown = score("no", replace(ASKED, answer=""), Mix({"format": 1.0}))

    def of(*scores: object) -> Rollout:
        return replace(answered, scores=(scores,))  # type: ignore[arg-type]

    assert of(good, bad, bad, unknown).accuracy == pytest.approx(1 / 3)
    assert of(good, bad, bad, unknown).formed == 0.25
    assert math.isnan(of(unknown).accuracy)


def test_choosing_and_joining(answered: Rollout) -> None:
    first, rest = (answered.chosen(keep) for keep in ([True, False, False, True], [False, True, True, False]))
    assert [look.question.id for look in first.looks] == ["q0", "text"]
    joined = first + rest
    assert [look.question.id for look in joined.looks] == ["q0", "text", "q1", "q2"]
    assert joined.reward_NG.tolist() == [answered.reward_NG.tolist()[i] for i in (0, 3, 1, 2)]
    assert [group.prompt.id for group in joined.groups] == [look.question.id for look in joined.looks]


def test_what_is_kept_for_the_report(answered: Rollout, films: Films, tmp_path: Path) -> None:
    advantages = [[0.5, -0.5, None]] * 4
    keep(tmp_path, 7, answered, advantages, films)
    rows = read_jsonl(tmp_path / "rollouts" / "000007.jsonl")
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "text"]
    for row, look, group, scores in zip(rows, answered.looks, answered.groups, answered.scores, strict=True):
        question = look.question
        assert (row["step"], row["kind"], row["hops"]) == (7, question.kind, question.hops)
        assert (row["question"], row["options"]) == (question.text, list(question.options))
        assert (row["answer"], row["evidence"]) == (question.answer, [list(span) for span in question.evidence])
        for line, answer, scored, advantage in zip(row["answers"], group.answers, scores, advantages[0], strict=True):
            assert line == {
                "text": answer.text, "tokens": len(answer.ids), "finish": answer.finish, "reward": scored.reward,
                "parts": dict(scored.parts), "advantage": advantage, "correct": scored.correct,
            }  # fmt: skip
    assert rows[0]["receipt"]["indices"] == [16, 48, 80, 112]
    assert (rows[3]["receipt"], rows[3]["strip"]) == (None, None)
    problems = Problems()
    read = list(read_lines(tmp_path / "rollouts" / "000007.jsonl", RolloutFile, "rollouts", problems))
    assert [line.id for line in read] == ["q0", "q1", "q2", "text"]
    assert not problems.said


def test_the_filmstrip_shows_the_frames_that_were_seen(answered: Rollout, films: Films, tmp_path: Path) -> None:
    keep(tmp_path, 1, answered, [[0.0] * 3] * 4, films)
    for row, look in zip(read_jsonl(tmp_path / "rollouts" / "000001.jsonl"), answered.looks, strict=True):
        if row["strip"] is None:
            continue
        strip = np.asarray(Image.open(tmp_path / row["strip"]))
        assert strip.shape == (64, 4 * 64, 3)
        frames = films.frames(look).repeat(2, 1).repeat(2, 2)
        assert abs(strip.astype(float) - np.concatenate(list(frames), 1)).mean() < 6
    assert len(list((tmp_path / "thumbs").iterdir())) == 3


def test_two_windows_of_one_film_have_two_strips(world: World, films: Films, tmp_path: Path) -> None:
    question = read_questions(world.rows("rl"))[0]
    windows = ((0.0, 2.0), (4.0, 6.0))
    policies = [FramePolicy(frames=4, start=a, end=b, max_pixels=PIXELS) for a, b in windows]
    looks = [Look(replace(question, id=f"w{n}"), policy) for n, policy in enumerate(policies)]
    films.tier.fill({Path(question.video or ""): policies}, films.model.fit, workers=0)
    encode(films, looks, silent())
    engine = LocalEngine(films.model, films.features, "v1")
    keep(tmp_path, 1, rollout(engine, films, looks, (0.0,), REWARD, 2, 0), [[0.0]] * 2, films)
    first, second = (row["strip"] for row in read_jsonl(tmp_path / "rollouts" / "000001.jsonl"))
    assert first != second
    assert (tmp_path / first).read_bytes() != (tmp_path / second).read_bytes()


def test_a_step_keeps_a_few_questions(
    answered: Rollout, films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST", 2)
    keep(tmp_path, 1, answered, [[0.0] * 3] * 4, films)
    assert [row["id"] for row in read_jsonl(tmp_path / "rollouts" / "000001.jsonl")] == ["q0", "q1"]


def test_groups_of_a_rollout_stay_with_their_prompts(answered: Rollout) -> None:
    assert all(isinstance(group, Group) for group in answered.groups)
    films_seen = [group.prompt.receipt and Path(group.prompt.receipt.path).name for group in answered.groups]
    assert films_seen == ["0.mp4", "1.mp4", "2.mp4", None]
