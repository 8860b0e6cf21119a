"""Steps shared by ranks: one rank's numbers are today's, hand-counted bytes, shares that add up, and the floor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.maths.test_cost import FLOPS, FREE, SHAPE, WORK, Counter, decoder
from tests.ranks import run

from longtake.maths.cost import Both, Keep, Way, Work, predict
from longtake.maths.cost_ranks import (
    Links,
    Mesh,
    fewest,
    fits,
    keep_on,
    layer_bytes,
    most_frames,
    predict_on,
    room_of_rank,
)
from longtake.maths.devices import DEVICES
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack, stem
from longtake.maths.room import USABLE, longer, room
from longtake.maths.shapes import PRESETS, Shape
from longtake.parallel.axis import Axis
from longtake.parallel.ranks import Ranks
from longtake.records import Prompt
from longtake.runtime.prefix import extend, finish, prefill
from longtake.runtime.shared import over

COUNTED = 0.03  # relative: of a share the ends of prompts are more
SEVEN, HOUR, LINKS = PRESETS["qwen2.5-vl-7b"], Work(3600, 252_000, 256), Links()
H100, H200 = DEVICES["h100"], DEVICES["h200"]
RATES = replace(H200.rates(2), layer=Both(0.0, 0.0))  # a call costs as much on every rank
LORA, FULL = Way("exact", "layers", adapter="lora"), Way("exact", "layers")
ALORA = Way("alora", "nothing", adapter="alora", warm=False)
KEPT = [replace(LORA, keep=keep) for keep in ("graph", "attention", "layers", "host")]
WAYS = [*KEPT, FULL, ALORA, replace(LORA, mode="none", keep="nothing")]


@pytest.mark.parametrize("way", [*WAYS, replace(LORA, kl=True, repeats=True, epochs=2, updates=4)])
def test_one_rank_is_today(way: Way) -> None:
    assert room_of_rank(SEVEN, HOUR, way, Mesh()) == room(SEVEN, HOUR, way)
    found = predict_on(SEVEN, HOUR, way, RATES, Mesh(), LINKS)
    assert found.film == predict(SEVEN, HOUR, way, RATES)
    assert (found.keys, found.weights, found.last) == (0, 0, 0)
    assert found.seconds(1, Mesh()) == pytest.approx(found.film.cached)


def multiplied(world: Axis, keep: Keep) -> tuple[float, float, float]:
    """FLOP of matrix products of this rank in (prefill, answers, prefix backward) of WORK, counted."""
    model = decoder()
    prompt = Prompt("p", tuple(range(40)) * 5, (), torch.arange(WORK.prefix).expand(3, -1), None, None)
    length = WORK.answer + 1  # the last token of an answer is never fed
    answers = [[[1] * length for _ in range(WORK.group)]]
    row = pack([prompt], answers, [[[1.0] * length for _ in range(WORK.group)]])
    bare = stem(row)
    shared, counts = over(bare.layout, Ranks(sequence=world)), [0.0]
    with Counter() as counter:
        embed_SE = shared.cut(model.embed(bare.ids_T).detach()).requires_grad_()
        made = prefill(model, bare, lambda: (embed_SE, None), keep, shared)
        counts.append(counter.flop)
        for part in answer_rows(row, 10**6, dealt=(world.index, world.size)):
            score_tokens(model.head, extend(model, made, part), part.target_R).logprob_R.sum().backward()
        counts.append(counter.flop)
        finish(model, made)
        counts.append(counter.flop)
    return counts[1], counts[2] - counts[1], counts[3] - counts[2]


@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_a_rank_multiplies_what_is_counted(keep: Keep) -> None:
    found = predict_on(SHAPE, WORK, Way("exact", keep), FLOPS, Mesh(2, 2), LINKS).film
    scored = 6 * SHAPE.head * WORK.group / 2  # the token that the prefix predicts is scored but never fed
    for prefilled, answered, back in run(2, multiplied, keep):
        assert found.prefill == pytest.approx(prefilled, rel=COUNTED)
        assert found.answers + scored == pytest.approx(answered, rel=COUNTED)
        assert found.prefix_backward == pytest.approx(back, rel=COUNTED)


def test_what_travels_for_a_layer_by_hand() -> None:
    """200 tokens on 4 ranks: three quarters come from others. 2 · 2 heads · 8 numbers a token, 2 bytes, then 4."""
    mesh = Mesh(12, 4)
    assert layer_bytes(SHAPE, 200, LORA, mesh) == Both(0.75 * 200 * 32 * 2, 0.75 * 200 * 32 * 4)
    assert layer_bytes(SHAPE, 200, replace(LORA, item=8), mesh) == Both(0.75 * 200 * 32 * 8, 0.75 * 200 * 32 * 8)
    assert layer_bytes(SHAPE, 200, ALORA, mesh) == Both(0.75 * 200 * 32 * 2, 0)
    asked = 0.75 * 50 * 2 * 4 * 8 * 2  # of its own 50 tokens queries out, outputs back
    for keep, passes in (("graph", 1), ("layers", 2), ("attention", 2)):
        plain, by_heads = (
            layer_bytes(SHAPE, 200, replace(LORA, keep=keep), replace(mesh, by_heads=heads)) for heads in (False, True)
        )
        assert by_heads.forward - plain.forward == asked
        assert by_heads.backward - plain.backward == passes * asked


def test_links() -> None:
    """Two machines of two: what all need comes in by two cards at once, what each needs by its own."""
    links = Links(near=100.0, far=10.0, machine=2)
    assert [links.gather(ranks) for ranks in (1, 2, 4)] == [100, 100, 20]
    assert [links.swap(ranks) for ranks in (2, 4)] == [100, 3 / (2 / 10)]
    assert Links().gather(64) == 400e9


def test_keys_travel_once_a_pass() -> None:
    mesh, links = Mesh(4, 4), Links(near=1.0, machine=8)
    forward, backward = 3 * 0.75 * 200 * 32 * 2, 3 * 0.75 * 200 * 32 * 4

    def keys(way: Way, mesh: Mesh = mesh) -> float:
        return predict_on(SHAPE, WORK, way, FREE, mesh, links).keys

    assert keys(LORA) == pytest.approx(forward + backward)
    assert keys(replace(LORA, kl=True, repeats=True, epochs=2)) == pytest.approx(4 * forward + 2 * backward)
    assert keys(ALORA) == pytest.approx(forward)
    assert keys(replace(ALORA, warm=True)) == 0
    asked = 0.75 * 50 * 2 * 4 * 8 * 2
    by_heads = keys(LORA, replace(mesh, by_heads=True))
    assert by_heads == pytest.approx(forward + backward + 2 * 3 * asked)  # the last layer's few ends aside


def test_shares_of_a_prefix_add_up() -> None:
    """Four ranks take a quarter of one rank's seconds each; the busiest of three has three of eight answers."""
    work = replace(HOUR, question=4000)
    one, four = (predict_on(SEVEN, work, LORA, RATES, Mesh(d, d), LINKS).film for d in (1, 4))
    for phase in ("encode", "prefill", "prefix_backward", "answers"):
        assert getattr(four, phase) == pytest.approx(getattr(one, phase) / 4), phase
    assert (four.decode, four.load, four.optimizer) == (one.decode, one.load, one.optimizer)
    assert 0.9 * one.generate < four.generate < one.generate
    three = predict_on(SEVEN, work, LORA, RATES, Mesh(3, 3), LINKS).film
    assert three.answers == pytest.approx(predict(SEVEN, replace(work, group=3), LORA, RATES).answers)
    again = replace(LORA, kl=True, repeats=True)
    one, four = (predict_on(SEVEN, work, again, RATES, Mesh(d, d), LINKS).film for d in (1, 4))
    assert four.score == pytest.approx(one.score / 4)


def test_a_step_goes_over_all_sequences() -> None:
    mesh = Mesh(8, 2)
    step = predict_on(SEVEN, HOUR, LORA, RATES, mesh, LINKS)
    each = step.film.cached - step.film.optimizer + step.keys
    assert step.seconds(4, mesh) == pytest.approx(each + step.film.optimizer + step.last)
    assert step.seconds(5, mesh) == pytest.approx(2 * each + step.film.optimizer + step.last)
    summed = 2 * 7 / 8 * LORA.learned(SEVEN) * 4 / 450e9  # gradients of the LoRA, out and back
    assert step.last == pytest.approx(summed)
    assert step.film.encode == pytest.approx(predict(SEVEN, HOUR, LORA, RATES).encode / 8)


def test_weights_in_shares_travel_by_hand() -> None:
    """Gathered whole for the rollout, layer by layer for answers forward and backward and the prefix backward."""
    mesh, links = Mesh(4, 1, shares=True), Links(near=1.0)
    step = predict_on(SHAPE, WORK, replace(FULL, answer_tokens=17), FREE, mesh, links)
    layers, learned = SHAPE.layers * SHAPE.layer, FULL.learned(SHAPE)
    gathered = learned + layers * (4 + 4 + 1)  # four runs of answers
    assert step.weights == pytest.approx(0.75 * (2 * gathered + 4 * 5 * layers))
    assert step.last == pytest.approx(0.75 * 4 * (learned - layers))
    slow = replace(FREE, learn=1.0)
    assert predict_on(SHAPE, WORK, FULL, slow, mesh, links).film.optimizer == pytest.approx(learned / 4)


@settings(derandomize=True, database=None, deadline=None)
@given(
    st.sampled_from([SEVEN, PRESETS["qwen2.5-vl-3b"], PRESETS["qwen3-vl-8b"]]),
    st.sampled_from([way for way in WAYS if way.keep != "graph"]),
    st.integers(1, 30_000),
    st.integers(2, 64),
)
def test_more_ranks_never_hold_more(shape: Shape, way: Way, frames: int, ranks: int) -> None:
    """A graph is left out: below --memory.tile its MLPs are not computed in tiles, and a token holds more."""
    work = Work(frames, 70 * frames, 256)
    one, many = room(shape, work, way), room_of_rank(shape, work, way, Mesh(ranks, ranks))
    assert many.peak <= one.peak
    assert many.kv == one.kv
    assert many.kept <= one.kept / ranks * (1 + 2 * ranks / work.prefix)
    assert many.host <= one.host / ranks * (1 + 2 * ranks / work.prefix)


def test_gathering_needs_room() -> None:
    """A layer's keys and values: once more while they are joined; on the way back two and two in float32."""
    mesh, layer = Mesh(4, 4), 200 * 32
    bare, found = room(SHAPE, Work(8, 38, 13, group=1, answer=17), LORA), room_of_rank(SHAPE, WORK, LORA, mesh)
    assert found.prefill - bare.prefill == pytest.approx(layer * 2)
    assert found.prefix_backward - bare.prefix_backward == pytest.approx(layer * (2 * 2 + 2 * 4))
    assert room_of_rank(SHAPE, WORK, ALORA, mesh).prefix_backward == 0
    assert found.kv == room(SHAPE, replace(WORK, group=1), LORA).kv
    assert found.answers == bare.answers
    assert found.generate == bare.generate


def test_weights_in_shares_are_whole_where_they_work() -> None:
    one, many = room(SEVEN, HOUR, FULL), room_of_rank(SEVEN, HOUR, FULL, Mesh(8, 1, shares=True))
    learned, frozen = FULL.learned(SEVEN), SEVEN.tower + SEVEN.merger
    assert many.weights == pytest.approx(2 * (learned / 8 + frozen))
    assert many.learning == pytest.approx(one.learning / 8)
    assert many.generate - one.generate == pytest.approx(2 * learned)
    assert many.prefill - one.prefill == pytest.approx(2 * learned)
    beside = 2 * SEVEN.head
    assert learned - SEVEN.layers * SEVEN.layer == beside
    for phase in ("answers", "prefix_backward"):
        assert getattr(many, phase) - getattr(one, phase) == pytest.approx(8 * SEVEN.layer + 4 * beside)


def test_the_fewest_ranks_that_have_room() -> None:
    found = fewest(SEVEN, HOUR, LORA, Mesh(8), H200.bytes, H200.host)
    assert found is not None
    assert 1 < found.sequence < 8
    assert not fits(SEVEN, HOUR, LORA, replace(found, sequence=found.sequence // 2), H200.bytes, H200.host)
    assert fewest(SEVEN, HOUR, LORA, Mesh(), H200.bytes, H200.host) is None
    assert fewest(SEVEN, HOUR, LORA, Mesh(6), H200.bytes, H200.host) in (Mesh(6, 2), Mesh(6, 3))
    assert fewest(SEVEN, longer(HOUR, 28_800), LORA, Mesh(64), H200.bytes, H200.host) is None


def test_what_is_kept_is_the_fastest_that_fits() -> None:
    short = longer(HOUR, 256)
    assert keep_on(SEVEN, short, LORA, Mesh(), H200.bytes, H200.host) == "graph"
    assert keep_on(SEVEN, HOUR, ALORA, Mesh(), H200.bytes, H200.host) == "nothing"
    kept = keep_on(SEVEN, HOUR, LORA, Mesh(8, 8), H100.bytes, H100.host)
    assert kept == "attention"
    assert not fits(SEVEN, HOUR, replace(LORA, keep="graph"), Mesh(8, 8), H100.bytes, H100.host)
    assert keep_on(SEVEN, longer(HOUR, 28_800), LORA, Mesh(8, 8), H100.bytes, H100.host) == "host"


@pytest.mark.parametrize("way", [LORA, ALORA])
def test_keys_and_values_are_the_floor(way: Way) -> None:
    """The most frames grow with ranks, but not beyond what keys and values, and their gradients, leave room for."""
    found = [most_frames(SEVEN, HOUR, way, Mesh(d, d), H200.bytes, H200.host) for d in (1, 8, 64, 4096)]
    assert found == sorted(found)
    last = Mesh(4096, 4096)
    assert fits(SEVEN, longer(HOUR, found[-1]), way, last, H200.bytes, H200.host)
    assert not fits(SEVEN, longer(HOUR, found[-1] + 1), way, last, H200.bytes, H200.host)
    sides = 2 if way.through else 1
    weights = room(SEVEN, HOUR, way).weights
    floor = (USABLE * H200.bytes - weights) / (sides * 2 * SEVEN.kv * 70)
    assert 0.7 * floor < found[-1] < floor
    assert most_frames(SEVEN, HOUR, way, Mesh(), 1e9, 1e9) == 0
