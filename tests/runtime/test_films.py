"""A run's films: decoded and encoded once, seen under every control, with gradients where the tower is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.world import World, silent

from longtake.data.rows import read_questions
from longtake.records import Cue, FramePolicy, Question
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model
from longtake.runtime.shelf import Counts
from longtake.sim.tiny import PIXELS
from longtake.train.footage import encode, open_films

POLICY = FramePolicy(frames=4, max_pixels=PIXELS)
SINGLE = 1e-5  # float32, numbers of size 1


@pytest.fixture(scope="module")
def questions(world: World) -> list[Question]:
    return read_questions(world.rows("rl"))[:3]


@pytest.fixture
def films(world: World, tmp_path: Path) -> Films:
    return open_films(load_model(world.model, device="cpu"), world.video(), tmp_path, frozen=True)


@pytest.fixture
def live(world: World, tmp_path: Path) -> Films:
    """Without a store: the tower is being trained."""
    return open_films(load_model(world.model, device="cpu"), world.video(), tmp_path, frozen=False)


def test_a_set_of_frames_is_encoded_once(films: Films, questions: list[Question]) -> None:
    looks = [Look(q, POLICY) for q in questions]
    told: list[tuple[int, int]] = []
    twice = [*looks, looks[0], replace(looks[1], question=questions[1])]
    assert films.encode(twice, lambda *n: told.append(n)) == (3, 3)
    assert told[-1] == (3, 3)
    assert films.encode(looks, lambda *_: None) == (3, 0)
    eight = FramePolicy(frames=8, max_pixels=PIXELS)
    assert films.encode([Look(questions[0], eight)], lambda *_: None) == (1, 1)
    assert films.store is not None
    assert films.store.counts == Counts(made=4)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_features_that_changed_on_disk_are_made_again_and_counted(
    world: World, tmp_path: Path, questions: list[Question], how: str
) -> None:
    looks = [Look(q, POLICY) for q in questions]
    model = load_model(world.model, device="cpu")
    first = open_films(model, world.video(features=tmp_path), tmp_path, frozen=True)
    first.encode(looks, lambda *_: None)
    handles = [first.prompt(look).features or "" for look in looks]
    before = [made.level_LNE.clone() for made in first.features(handles)]
    second = open_films(model, world.video(features=tmp_path), tmp_path, frozen=True)
    assert [second.prompt(look).features for look in looks] == handles
    (pack,) = tmp_path.rglob("*.safetensors")
    content = bytearray(pack.read_bytes())
    content[-5] ^= 1
    pack.unlink()
    if how != "gone":
        pack.write_bytes(content if how == "flipped" else content[:-9])
    assert all(torch.equal(made.level_LNE, old) for made, old in zip(second.features(handles), before, strict=True))
    assert second.store is not None
    assert second.store.counts == Counts(disk=2 * (how == "flipped"), remade=3, damaged=int(how != "gone"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert len(list(tmp_path.rglob("*.damaged"))) == (how != "gone")


def test_a_prompt_is_made_once_and_names_its_features(films: Films, questions: list[Question]) -> None:
    look = Look(questions[0], POLICY)
    encode(films, [look], silent())
    prompt = films.prompt(look)
    assert films.prompt(Look(questions[0], POLICY)) is prompt
    assert prompt.receipt is not None
    assert prompt.receipt.indices == (16, 48, 80, 112)
    assert prompt.receipt.tokens == 2  # 32 x 32 pixels of two frames are one token
    (features,) = films.features([prompt.features or ""])
    want = films.model.encode([films.frames(look)])[0]
    torch.testing.assert_close(features.level_LNE, want.level_LNE.detach(), rtol=SINGLE, atol=SINGLE)
    assert films.prompt(replace(look, question=replace(questions[0], text="what happens ?"))).ids != prompt.ids


def test_features_come_in_the_order_of_their_handles(films: Films, questions: list[Question]) -> None:
    looks = [Look(q, POLICY) for q in questions]
    encode(films, looks, silent())
    handles = [films.prompt(look).features or "" for look in looks]
    assert len(set(handles)) == 3
    turned = films.features([handles[2], handles[0], handles[2]])
    for got, place in zip(turned, (2, 0, 2), strict=True):
        assert torch.equal(got.level_LNE, films.features([handles[place]])[0].level_LNE)
    assert not torch.equal(turned[0].level_LNE, turned[1].level_LNE)


def test_shuffled_frames_are_the_same_in_another_order(films: Films, questions: list[Question]) -> None:
    asked = questions[1]  # no two of its frames are alike: a distractor walks by
    plain, mixed = (Look(asked, replace(POLICY, frames=8), control) for control in ("", "shuffled"))
    encode(films, [plain, mixed], silent())
    true, turned = (films.frames(look).reshape(8, -1) for look in (plain, mixed))
    order = [next(i for i in range(8) if np.array_equal(row, true[i])) for row in turned]
    assert order != list(range(8))
    assert sorted(order) == list(range(8))
    receipts = [films.prompt(look).receipt for look in (plain, mixed)]
    assert receipts[0] is not None
    assert receipts[1] is not None
    assert receipts[1].indices == tuple(receipts[0].indices[i] for i in order)
    assert receipts[1].seconds == receipts[0].seconds  # the prompt does not tell
    assert "shuffled" in receipts[1].cut
    assert films.prompt(plain).ids == films.prompt(mixed).ids
    assert films.prompt(plain).features != films.prompt(mixed).features
    again = Look(replace(asked, id="other"), mixed.policy, "shuffled")
    assert np.array_equal(films.frames(again), films.frames(mixed))  # by film, not by question


def test_one_frame_and_no_film(films: Films, questions: list[Question]) -> None:
    one, none = (Look(questions[0], replace(POLICY, frames=8), control) for control in ("one_frame", "no_video"))
    encode(films, [one, none], silent())
    single = films.prompt(one)
    assert single.receipt is not None
    assert (single.receipt.indices, single.receipt.padded, single.receipt.tokens) == ((64, 64), 1, 1)
    text = films.prompt(none)
    assert (text.receipt, text.features, text.visual) == (None, None, ())
    assert len(text.ids) < len(single.ids)
    assert films.store is not None
    assert films.store.counts.made == 1
    windowed = Look(questions[0], FramePolicy(fps=4.0, start=0.0, end=2.0, max_pixels=PIXELS), "one_frame")
    assert windowed.seen()[1] == FramePolicy(frames=1, start=0.0, end=2.0, max_pixels=PIXELS)


def test_a_tower_that_is_trained_gets_its_gradient(live: Films, questions: list[Question]) -> None:
    look = Look(questions[0], POLICY)
    assert live.encode([look], lambda *_: pytest.fail("nothing to encode")) == (0, 0)
    handle = live.prompt(look).features or ""
    before = live.features([handle])[0].level_LNE
    before.square().sum().backward()
    weights = list(live.model.tower.parameters())
    assert all(weight.grad is not None for weight in weights)
    with torch.no_grad():
        weights[0].add_(1.0)
    assert not torch.equal(live.features([handle])[0].level_LNE, before)  # made anew, by the weights of now
    assert live.features([]) == []


def test_live_handles_tell_looks_apart(live: Films, questions: list[Question]) -> None:
    looks = [Look(q, policy) for q in questions[:2] for policy in (POLICY, replace(POLICY, frames=8))]
    looks.append(replace(looks[0], control="shuffled"))
    handles = [live.prompt(look).features or "" for look in looks]
    assert len(set(handles)) == len(looks)
    for look, features in zip(looks, live.features(handles), strict=True):
        want = live.model.encode([live.frames(look)])[0].level_LNE
        torch.testing.assert_close(features.level_LNE, want, rtol=SINGLE, atol=SINGLE)


def test_a_film_that_fails_is_not_usable(films: Films, questions: list[Question], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    films.tier.fill({bad: [POLICY]}, films.model.fit, 0, films.quarantine)
    assert not films.usable(replace(questions[0], video=str(bad)))
    assert films.usable(questions[0])
    assert films.usable(replace(questions[0], video=None))


def test_subtitles_stand_before_the_question(world: World, films: Films, tmp_path: Path) -> None:
    """Those of the window; the receipt counts them; the control without frames keeps the words."""
    cues = (Cue(0.0, 0.4, "left"), Cue(3.0, 9.0, "right"))
    question = Question("q0", str(world.film(0)), "where ?", subtitles=cues)

    def texts(look: Look) -> tuple[str, int | None]:
        prompt = films.prompt(look)
        return films.model.tokenizer.decode(prompt.ids), prompt.receipt and prompt.receipt.subtitles

    plain = replace(question, subtitles=(), text="[0.0s] left\n[3.0s] right\nwhere ?")
    assert texts(Look(question, POLICY))[0] == texts(Look(plain, POLICY))[0]
    assert texts(Look(question, POLICY))[1] == 2
    assert texts(Look(replace(plain, text="where ?"), POLICY))[1] == 0
    late = replace(POLICY, start=1.0)
    one = replace(plain, text="[3.0s] right\nwhere ?")
    assert texts(Look(question, late)) == (texts(Look(one, late))[0], 1)
    blind = Look(question, POLICY, "no_video")
    assert texts(blind) == (texts(Look(replace(plain, video=None), POLICY))[0], None)
    off = open_films(films.model, world.video(), tmp_path / "off", frozen=True)
    off.subtitles = False
    bare = replace(plain, text="where ?")
    assert off.prompt(Look(question, POLICY)).ids == films.prompt(Look(bare, POLICY)).ids
