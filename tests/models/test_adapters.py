"""LoRA and aLoRA: what acts where, what trains, and plain peft's own logits from the same files."""

import json
import math
import warnings

import pytest
import torch
from tests.models import tiny
from tests.plain import pixels as plain
from torch.testing import assert_close
from transformers import Qwen3VLForConditionalGeneration

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.maths.pack import answer_rows, pack, stem
from longtake.models import adapters
from longtake.records import Layout
from longtake.runtime.inputs import fill
from longtake.runtime.load import load_model
from longtake.runtime.prefix import extend, prefill

EXACT = 1e-12  # float64
ROUNDED = 1e-5  # float64, but pixels and the rotation of the vision tower are float32
HALF = 2e-2  # bfloat16, of numbers of size 1
FILM = tiny.film(1, 6, 16, 8)
ANSWERS = ([70, 71, 72, 90], [80, 81], [75, 60, 61])
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def with_adapter(folder, kind="lora", targets=None, scale=0.3, dtype="float64"):
    """A model whose adapter has learned something."""
    model = tiny.exact(folder) if dtype == "float64" else load_model(folder, dtype, "cpu")
    adapters.add_adapter(model, kind, 4, 8.0, targets)
    learned(model, scale)
    return model


def learned(model, scale=0.3):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=generator) * scale)


def logits(model, ids, prompt=None):
    """[T, V] of text, or of a prompt about FILM and what follows it."""
    ids_T = torch.tensor(ids)
    visual_T = ids_T == model.net.config.video_token_id
    films = [] if prompt is None else model.encode([FILM])
    embed_TE, deepstack = fill(model, ids_T, visual_T, films)
    position_3T = model.positions(ids, [] if prompt is None else [model.pixels.grid(16, 8, len(FILM))])
    return model.head(model.hidden(embed_TE, position_3T, visual_T, deepstack, Row(Layout(((len(ids), ()),)))))


def save(model, folder):
    folder.mkdir()
    model.save(folder)
    return folder


def plain_peft(base, adapter):
    """peft's own model on transformers' own network, float64."""
    from peft import PeftModel

    net = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
    tiny.exact_norms(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        return PeftModel.from_pretrained(net, adapter, autocast_adapter_dtype=False).eval()


def test_every_linear_layer_of_the_decoder_and_nothing_else(folder):
    model = with_adapter(folder)
    assert {name.rpartition(".")[2] for name in model.adapter.layers} == LINEARS
    assert len(model.adapter.layers) == 2 * len(LINEARS)
    assert all(".layers." in name for name in model.adapter.layers)
    trainable = {id(p) for p in model.net.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.adapter.weights().values()}


def test_targets(folder):
    model = with_adapter(folder, targets=("q_proj", "down_proj"))
    assert {name.rpartition(".")[2] for name in model.adapter.layers} == {"q_proj", "down_proj"}
    for targets in (("q_proj", "linear_fc1"), ("lm_head",), ()):
        with pytest.raises(UserError, match="some of down_proj, gate_proj"):
            with_adapter(folder, targets=targets)


def test_a_tower_with_layers_of_the_same_names_is_left_alone(folder):
    """As Qwen2.5-VL's."""
    model = load_model(folder, device="cpu")
    model.tower.merger.up_proj = torch.nn.Linear(2, 2)
    adapters.add_adapter(model, "lora", 4, 8.0, ("up_proj", "q_proj"))
    assert len(model.adapter.layers) == 4
    assert not any("visual" in name for name in model.adapter.layers)


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_is_the_same_every_time(folder):
    base = tiny.exact(folder)
    want = logits(base, [1, 40, 41])
    made = []
    for _ in range(2):
        model = tiny.exact(folder)
        adapters.add_adapter(model, "lora", 4, 8.0)
        assert torch.equal(logits(model, [1, 40, 41]), want)
        made.append(list(model.adapter.weights().values()))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    for layer in model.adapter.layers.values():  # as peft draws it: uniform up to 1 / √width
        a_rI = layer.lora_A["default"].weight
        assert 0.8 < a_rI.abs().max() * math.sqrt(a_rI.shape[1]) <= 1
    adapters.add_adapter(base, "lora", 4, 8.0, seed=1)
    assert not torch.equal(next(iter(base.adapter.weights().values())), made[0][0])


@torch.no_grad()
def test_off_is_the_base_model_also_nested_and_after_an_error(folder):
    base, model = tiny.exact(folder), with_adapter(folder)
    ids = [1, 40, 41, 42]
    want, on = logits(base, ids), logits(model, ids)
    assert (want - on).abs().max() > 0.1
    with model.adapter.off():
        assert torch.equal(logits(model, ids), want)
        with model.adapter.off():
            assert torch.equal(logits(model, ids), want)
        assert torch.equal(logits(model, ids), want)
    with pytest.raises(KeyError), model.adapter.off():
        raise KeyError
    assert torch.equal(logits(model, ids), on)
    assert all(x.requires_grad for x in model.adapter.weights().values())


def test_values_and_gradients_are_those_of_merged_weights(folder):
    """W + s B A: the chain rule takes the gradient of W to those of A and B."""
    model, merged = with_adapter(folder), with_adapter(folder)
    adapters.merge(merged)
    ids = [1, 40, 41, 42]
    out, want = logits(model, ids), logits(merged, ids)
    assert_close(out, want, rtol=EXACT, atol=EXACT)
    out.sin().sum().backward()
    want.sin().sum().backward()
    scale = 8.0 / 4
    for name, layer in model.adapter.layers.items():
        gradient = merged.net.get_parameter(f"{name}.weight").grad
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert_close(a.grad, scale * b.T @ gradient, rtol=EXACT, atol=EXACT)
        assert_close(b.grad, scale * gradient @ a.T, rtol=EXACT, atol=EXACT)


@torch.no_grad()
def test_in_half_precision_the_adapter_is_float32_and_acts_in_half(folder):
    model = with_adapter(folder, dtype="bfloat16", scale=0.1)
    assert {x.dtype for x in model.adapter.weights().values()} == {torch.float32}
    layer = next(iter(model.adapter.layers.values()))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    want = x.double() @ layer.base_layer.weight.double().T + x.double() @ a.T @ b.T * 2.0
    assert_close(out.double(), want, rtol=HALF, atol=HALF)


@torch.no_grad()
def test_merged_weights_are_one_plain_model(folder, tmp_path):
    model = with_adapter(folder, dtype="float32")
    want = logits(model, [1, 40, 41])
    adapters.merge(model)
    assert model.adapter is None
    assert all(p.requires_grad for p in model.net.parameters())
    again = load_model(save(model, tmp_path / "merged"), device="cpu")
    assert again.adapter is None
    assert_close(logits(again, [1, 40, 41]), want, rtol=ROUNDED, atol=ROUNDED)
    with pytest.raises(UserError, match="nothing to merge"):
        adapters.merge(model)
    with pytest.raises(UserError, match="an aLoRA cannot be merged"):
        adapters.merge(with_adapter(folder, "alora"))


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(folder, tmp_path):
    model = with_adapter(folder, dtype="float32")
    out = save(model, tmp_path / "adapter")
    assert not list(out.glob("model*"))
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) < 40_000
    again = load_model(out, device="cpu")
    assert not again.net.training
    assert again.adapter.kind == "lora"
    assert torch.equal(logits(again, [1, 40, 41]), logits(model, [1, 40, 41]))
    twice = save(again, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (twice / name).read_bytes() == (out / name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("seen", [False, True])
def test_plain_peft_has_the_same_logits_for_a_lora(folder, tmp_path, seen):
    model = with_adapter(folder)
    peft = plain_peft(folder, save(model, tmp_path / "adapter"))
    prompt = model.prompt(tiny.ask(), tiny.receipt(FILM) if seen else None, "f")
    got = logits(model, prompt.ids, prompt if seen else None)
    assert_close(got, ask(peft, model, prompt.ids, seen), rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
@pytest.mark.parametrize("seen", [False, True])
def test_plain_peft_has_the_same_logits_for_an_alora(folder, tmp_path, seen):
    """Base model for the prefix, adapter from the assistant header on: ours in two passes, peft's in one."""
    model = with_adapter(folder, "alora")
    out = save(model, tmp_path / "adapter")
    assert tuple(json.loads((out / "adapter_config.json").read_text())["alora_invocation_tokens"]) == model.header
    peft = plain_peft(folder, out)
    prompt = model.prompt(tiny.ask("Who?"), tiny.receipt(FILM) if seen else None, "f" if seen else None)
    assert prompt.ids[-len(model.header) :] == model.header
    got = torch.cat([scored(again, prompt, seen) for again in (model, tiny.exact(out))])
    want = [ask(peft, model, [*prompt.ids, *answer[:-1]], seen)[len(prompt.ids) - 1 :] for answer in ANSWERS]
    assert_close(got, torch.cat([*want, *want]), rtol=ROUNDED, atol=ROUNDED)
    base = [
        logits(tiny.exact(folder), prompt.ids, prompt if seen else None),
        logits(model, prompt.ids, prompt if seen else None),
    ]
    assert all((got[0] - other[-1]).abs().max() > 0.01 for other in base)  # neither no adapter nor one everywhere


def scored(model, prompt, seen):
    """[R, V] before every token of ANSWERS: the prefix once without the adapter, header and answers on it."""
    row = pack([prompt], [ANSWERS], [[[0.0] * len(a) for a in ANSWERS]], lead=len(model.header))
    stems = stem(row)
    films = model.encode([FILM]) if seen else []
    with model.adapter.off():
        made = prefill(model, stems, lambda: fill(model, stems.ids_T, stems.visual_T, films), "nothing")
    return torch.cat([model.head(extend(model, made, part)) for part in answer_rows(row, 10**6)])


def ask(peft, model, ids, seen):
    """[T, V] of peft's forward."""
    ids_1T = torch.tensor([ids])
    film = {}
    if seen:
        film = {
            "pixel_values_videos": torch.from_numpy(plain.patchify(FILM, tiny.PIXELS)),
            "video_grid_thw": torch.tensor([model.pixels.grid(16, 8, len(FILM))]),
            "mm_token_type_ids": 2 * (ids_1T == model.net.config.video_token_id).int(),
        }
    return peft(input_ids=ids_1T, use_cache=False, **film).logits[0]


def test_training_goes_on_with_the_adapter_that_is_there(folder, tmp_path):
    model = load_model(folder, device="cpu")
    adapters.prepare(model, "full", 4, 8.0)
    assert model.adapter is None
    adapters.prepare(model, "lora", 4, 8.0)
    learned(model)
    again = load_model(save(model, tmp_path / "adapter"), device="cpu")
    there = again.adapter
    adapters.prepare(again, "lora", 4, 8.0)
    assert again.adapter is there
    assert {id(p) for p in again.net.parameters() if p.requires_grad} == {id(p) for p in there.weights().values()}
    for asked in (("alora", 4, 8.0), ("lora", 8, 8.0), ("lora", 4, 4.0), ("lora", 4, 8.0, ("q_proj",))):
        with pytest.raises(UserError, match="another one"):
            adapters.prepare(again, *asked)
    with pytest.raises(UserError, match="`longtake merge` it into its base first"):
        adapters.prepare(again, "full", 4, 8.0)


def test_a_model_without_a_name_cannot_be_the_base_of_a_saved_adapter(tmp_path):
    words = tiny.tokenizer()
    model = tiny.Qwen3VL(tiny.network(words), words, tiny.PIXELS)
    adapters.add_adapter(model, "lora", 4, 8.0)
    with pytest.raises(UserError, match="base has no name"):
        model.save(tmp_path)
