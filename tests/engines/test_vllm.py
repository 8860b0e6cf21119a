"""The client of vLLM against a worker that speaks its protocol; no vLLM here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.engines.fakes import (  # noqa: F401
    OPTIONS,
    draws,
    features_fixture,
    log,
    model_fixture,
    prompts_fixture,
    refused,
    started_fixture,
)

from longtake.engines import vllm, vllm_link
from longtake.engines.vllm import Place
from longtake.engines.vllm_process import Process
from longtake.records import Draw, Features


def test_answers_come_in_order_with_their_seeds_and_version(started, model, prompts):
    engine, said = started("backwards 4")
    groups = engine.generate(prompts, draws(prompts), 3)
    assert [group.prompt for group in groups] == prompts
    assert [[a.seed for a in group.answers] for group in groups] == [[d.seed for d in own] for own in draws(prompts)]
    for group in groups:
        first, second = group.answers
        assert (first.finish, second.finish) == ("length", "stop")
        assert first.text == model.tokenizer.decode(first.ids)
        assert second.text == model.tokenizer.decode(second.ids[:-1])
        assert second.ids[-1] == model.end_ids[0]
        assert first.logprob == (-1.5,) * 3
        assert first.weights == "v1"
    assert said == ["vLLM 0 answers on cpu"]


def test_a_film_is_sent_once_and_forgotten_after_its_last_question(started, features, prompts, tmp_path):
    engine, _ = started()
    engine.generate(prompts, draws(prompts), 2)
    engine.positions(prompts[1])  # so that all before is heard
    ops = [(one["op"], one.get("handle")) for one in log(tmp_path) if one["op"] in ("features", "forget")]
    assert sorted(ops) == [("features", "a"), ("features", "b"), ("forget", "a"), ("forget", "b")]
    told = log(tmp_path)
    last = [one["number"] for one in told if one["op"] == "ask"][2]
    assert told.index({"op": "forget", "handle": "a"}) > told.index({"op": "replied", "number": last})
    sent = load_file(tmp_path / "last.safetensors")["features"]
    level_LNE = features(["b"])[0].level_LNE
    assert torch.equal(sent, torch.cat(list(level_LNE), -1).float())
    assert not list((tmp_path / "vllm").glob("features-*"))


def test_no_more_is_asked_at_once_than_there_is_room_for(started, prompts, monkeypatch):
    engine, _ = started()
    said, say, hear = [], Process.say, Process.hear
    monkeypatch.setattr(Process, "say", lambda self, op, **content: (said.append(op), say(self, op, **content)))
    monkeypatch.setattr(Process, "hear", lambda self, seconds: (said.append("heard"), hear(self, seconds))[1])
    engine.generate(prompts, draws(prompts), 2)
    assert [op for op in said if op in ("ask", "heard")] == ["ask"] * 4 + ["heard"] * 4
    said.clear()
    monkeypatch.setattr(vllm_link, "AHEAD", len(prompts[0].ids) + len(prompts[1].ids))
    engine.generate(prompts, draws(prompts), 2)
    assert [op for op in said if op in ("ask", "heard")][:3] == ["ask", "ask", "heard"]


def test_what_is_asked(started, model, prompts, tmp_path):
    engine, _ = started()
    engine.generate(prompts[:2], draws(prompts[:2]), 5)
    film, text = [one for one in log(tmp_path) if one["op"] == "ask"]
    assert film["ids"] == list(prompts[0].ids)
    assert film["sent"] == list(model.sent(prompts[0]).ids)
    assert film["film"]["kind"] == "video"
    assert film["film"]["grid"] == [2, 2, 4]
    assert film["draws"] == [[1.0, 3], [0.0, 2]]
    assert film["stop"] == list(model.end_ids)
    assert film["max_tokens"] == 5
    assert text["film"] is None
    assert text["sent"] == text["ids"] == list(prompts[1].ids)


def test_scores_and_positions(started, model, prompts, tmp_path):
    engine, _ = started("backwards 3")
    assert engine.score(prompts[:2], [[(7, 8)], [(9,), (5, 6)]]) == [[[-7.0, -8.0]], [[-9.0], [-5.0, -6.0]]]
    sent = [one["sent"] for one in log(tmp_path) if one["op"] == "score"]
    assert sent[0] == [*model.sent(prompts[0]).ids, 7, 8]
    assert sent[2] == [*prompts[1].ids, 5, 6]
    assert engine.positions(prompts[1]).tolist() == [list(range(len(prompts[1].ids)))] * 3


def test_it_gives_back_the_features_that_reached_it(started, model, prompts, tmp_path):
    engine, _ = started()
    sent = torch.cat(list(engine.link.features([prompts[0].features])[0].level_LNE), -1)
    assert torch.equal(engine.held(prompts[0]), sent.float())
    assert not list((tmp_path / "vllm").glob("features-*"))
    assert engine.places


def test_what_it_refuses_names_the_question_and_ends_nothing(started, prompts, tmp_path):
    engine, _ = started("refuses")
    with refused("does not take question q1", "the prompt is odd"):
        engine.generate(prompts[1:], draws(prompts[1:]), 3)
    assert engine.score(prompts[1:2], [[(7,)]]) == [[[-7.0]]]
    assert {"op": "drop"} in log(tmp_path)
    with refused("does not take"):
        engine.generate(prompts, draws(prompts), 3)
    engine.load(engine._model, "v2")  # what is still said about the others is no reply to this
    assert engine.weights == "v2"
    assert engine.link.restarts == 0


def test_features_that_are_anothers(started, prompts, features, tmp_path):
    engine, _ = started()
    engine.link.features = lambda handles: [Features(features(handles)[0].level_LNE[:, 1:])]
    with pytest.raises(ValueError, match="3 visual tokens do not fill question q0"):
        engine.generate(prompts[:2], draws(prompts[:2]), 3)
    engine.positions(prompts[1])
    assert {"op": "drop"} in log(tmp_path)


def test_a_prompt_that_is_too_long(started, prompts):
    engine, _ = started()
    room = OPTIONS["max_model_len"] - len(prompts[0].ids)
    assert len(engine.generate(prompts[:1], draws(prompts[:1]), room)[0].answers[0].ids) == room
    with refused("question q0 is too long", f"{room + 1} of an answer are more than 300", "--engine.context"):
        engine.generate(prompts[:1], draws(prompts[:1]), room + 1)


@pytest.mark.parametrize("heat", [0.005, 2.5])
def test_a_temperature_that_vllm_does_not_take(started, prompts, heat):
    engine, _ = started()
    with refused(f"temperature {heat}", "between 0.01 and 2.0"):
        engine.generate(prompts[:1], [[Draw(1.0, 1), Draw(heat, 1)]], 3)
    assert engine.generate(prompts[:1], [[Draw(0.01, 1), Draw(2.0, 1), Draw(0.0, 1)]], 3)


def test_numbers_that_are_none(started, prompts):
    engine, _ = started("nan")
    with refused("no finite numbers", "--dtype float32"):
        engine.generate(prompts[:1], draws(prompts[:1]), 3)


def test_new_weights(started, model, prompts, tmp_path):
    engine, _ = started()
    engine.load(model, "v1")
    assert [one for one in log(tmp_path) if one["op"] == "load"] == []
    engine.load(model, "v2")
    loads = [one["model"] for one in log(tmp_path) if one["op"] == "load"]
    assert len(loads) == 1
    assert [str(path) for path in (tmp_path / "vllm").glob("weights-*")] == loads
    assert (Path(loads[0]) / "model.safetensors").is_file()
    assert engine.generate(prompts[1:2], draws(prompts[1:2]), 3)[0].answers[0].weights == "v2"


def test_what_it_reads_otherwise_is_counted_and_said_once(started, prompts):
    engine, said = started("strange")
    engine.generate(prompts, draws(prompts), 3)
    assert engine.strange == 4
    assert len([text for text in said if "other tokens" in text]) == 1


def test_options(model):
    place = Place(Path("p"), Path("f"), context=77, memory=0.5)
    taken = vllm.options(place, model)
    assert taken["dtype"] == "float32"  # of a model in float64
    assert taken.get("gpu_memory_utilization") == 0.5
    assert taken["max_model_len"] == 77
    taken = vllm.options(Place(Path("p"), Path("f"), dtype="bfloat16", memory=2.0), model)
    assert taken["dtype"] == "bfloat16"
    assert taken.get("kv_cache_memory_bytes") == 2 * 2**30
