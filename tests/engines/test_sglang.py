"""The SGLang client against a stand-in that computes with the same tiny network: what goes, comes, and is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.endpoint import Reply, endpoint, refuses
from tests.engines import wide
from tests.models import tiny

from longtake.engines.local import LocalEngine
from longtake.engines.sglang import SglangEngine
from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.records import Draw, Layout

CLOSE = 1e-4  # float32, and embeddings that went as text
LONGEST = 6
FILM = tiny.film(0, 4, 24, 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wide.model(tmp_path_factory.mktemp("wide"), "llava_next_video")


@pytest.fixture(scope="module")
def local(model):
    with torch.no_grad():
        made = model.encode([FILM])
    return LocalEngine(model, lambda handles: [made[0] for _ in handles], "v1")


@pytest.fixture(scope="module")
def prompts(model):
    return [model.prompt(tiny.ask("Which cup?"), tiny.receipt(FILM), "f"), model.prompt(tiny.ask("2 + 2?"), None, None)]


class Server:
    """Greedy whatever the seed; takes weights that lie in a folder."""

    def __init__(self, model) -> None:
        self.model, self.asked, self.folders = model, [], []

    def __call__(self, request, number) -> Reply:
        if request["path"].endswith("/update_weights_from_disk"):
            folder = Path(request["model_path"])
            self.folders.append(sorted(file.name for file in folder.iterdir()))
            return Reply(body=json.dumps({"success": True, "message": ""}))
        self.asked.append(request)
        return Reply(body=json.dumps(self.answer(request)))

    @torch.no_grad()
    def answer(self, request):
        net = self.model
        given = request.get("input_embeds")
        start = torch.tensor(given) if given else net.embed(torch.tensor(request["input_ids"]))
        params, found = request["sampling_params"], []
        while len(found) < params["max_new_tokens"] and not (found and found[-1][1] in params["stop_token_ids"]):
            tail = net.embed(torch.tensor([token for _, token, _ in found], dtype=torch.int64))
            embed_TE = torch.cat([start, tail])
            places = torch.arange(len(embed_TE)).expand(3, -1)
            none = torch.zeros(len(embed_TE), dtype=torch.bool)
            hidden_TE = net.hidden(embed_TE, places, none, None, Row(Layout(((len(embed_TE), ()),))))
            logprob_V = net.head(hidden_TE[-1:])[0].log_softmax(-1)
            token = int(logprob_V.argmax())
            found.append([float(logprob_V[token]), token, None])
        finish = "stop" if found[-1][1] in params["stop_token_ids"] else "length"
        return {"text": "", "meta_info": {"output_token_logprobs": found, "finish_reason": {"type": finish}}}


def test_it_answers_as_the_local_engine_does(model, local, prompts, tmp_path) -> None:
    server = Server(model)
    draws = [[Draw(0.0, 2**62 + 1), Draw(0.0, 2)]] * 2
    with endpoint(server) as there:
        engine = SglangEngine.open(model, there.url, tmp_path, local.features, "v1", 30.0)
        groups = engine.generate(prompts, draws, LONGEST)
    want = local.generate(prompts, draws, LONGEST)
    for group, other in zip(groups, want, strict=True):
        for answer, same in zip(group.answers, other.answers, strict=True):
            assert (answer.ids, answer.text, answer.finish) == (same.ids, same.text, same.finish)
            assert (answer.seed, answer.weights) == (same.seed, "v1")
            assert answer.logprob == pytest.approx(same.logprob, abs=CLOSE)
    assert sorted("input_embeds" in one for one in server.asked) == [False, False, True, True]
    assert all(one["sampling_params"]["sampling_seed"] < 2**31 and one["return_logprob"] for one in server.asked)


def test_new_weights_go_as_a_folder_and_the_old_one_goes_away(model, local, tmp_path) -> None:
    server = Server(model)
    with endpoint(server) as there:
        engine = SglangEngine.open(model, there.url, tmp_path, local.features, "v1", 30.0)
        engine.load(model, "v1")
        assert len(server.folders) == 1
        engine.load(model, "v2")
    assert len(server.folders) == 2
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(server.folders[1])
    assert len(list((tmp_path / "sglang").iterdir())) == 1
    assert json.loads(next((tmp_path / "sglang").glob("*/config.json")).read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refuses(500, "no room"), "refuses"),
        (Reply(body="<html>"), "not SGLang's reply"),
        (Reply(body="[1]"), "not SGLang's reply"),
        (Reply(body='{"success": false, "message": "other shapes"}'), "does not take the weights"),
        (Reply(body='{"error": "?"}'), "does not take the weights"),
    ],
)
def test_what_goes_wrong_with_weights_is_said(model, local, tmp_path, reply, said) -> None:
    with endpoint(lambda request, number: reply) as there, pytest.raises(UserError, match=said):
        SglangEngine.open(model, there.url, tmp_path, local.features, "v1", 30.0)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "not SGLang's reply"),
        ({"output_token_logprobs": [], "finish_reason": {"type": "stop"}}, "does not end as it says"),
        ({"output_token_logprobs": [[-0.1, 5, None]], "finish_reason": {"type": "stop"}}, "does not end as it says"),
    ],
)
def test_what_goes_wrong_with_answers_is_said(model, local, prompts, tmp_path, meta, said) -> None:
    def answer(request, number):
        return Reply(body=json.dumps({"success": True} if "model_path" in request else {"meta_info": meta}))

    with endpoint(answer) as there:
        engine = SglangEngine.open(model, there.url, tmp_path, local.features, "v1", 30.0)
        with pytest.raises(UserError, match=said):
            engine.generate(prompts, [[Draw(0.0, 1)]] * 2, LONGEST)


def test_nobody_there(model, local, tmp_path) -> None:
    with pytest.raises(UserError, match="does not answer"):
        SglangEngine.open(model, "http://127.0.0.1:9", tmp_path, local.features, "v1", 5.0)


def test_positions_in_three_rows_are_refused(tmp_path) -> None:
    model = wide.model(tmp_path / "m", "qwen3_vl")
    with pytest.raises(UserError, match="no films of this model"):
        SglangEngine.open(model, "http://127.0.0.1:9", tmp_path, lambda handles: [], "v1", 5.0)
