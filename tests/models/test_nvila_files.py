"""NVILA's three folders: read as released, written, read again; what is wrong with them is said with the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny as any_tiny
from tests.models import tiny_nvila as tiny
from torch.testing import assert_close

from longtake.cli.plan_model import known
from longtake.errors import UserError
from longtake.log.files import read_json
from longtake.models import nvila_files
from longtake.models.adapters import add_adapter, merge
from longtake.models.heads import add_head
from longtake.models.nvila import NVILA, QWEN2
from longtake.runtime.load import load_model, weights_version

FILM = tiny.film(0, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nvila")
    tiny.model("mlp_downsample", pools=[[2, 1, 1]], fps=0.5).save(made)
    return made


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@torch.no_grad()
def answer(model):
    """All that a model says of one film."""
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(FILM), "f")
    return tiny.logits(model, prompt, model.encode([FILM]))


def load(folder: Path) -> NVILA:
    return load_model(folder, device="cpu")


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "mlp_downsample", "column_major": True, "sizes": {"tied": False}},
        {"kind": "mlp_downsample_3x3_fix", "pools": [[2, 1, 1]], "sizes": {"head": True}},
        {"kind": "mlp_downsample_2x2_fix", **tiny.SCALED, "model_type": "vila", "auto_map": {"AutoModel": "x.py"}},
        {"kind": "mlp2x_gelu", "mm_vision_select_feature": "patch", "chat_template": "qwen2"},
        {"kind": "linear", "image_aspect_ratio": "dynamic", "max_tiles": 4},
    ],
)
def test_saved_and_loaded_is_the_same_model(tmp_path: Path, more) -> None:
    first = tiny.model(**more)
    first.save(tmp_path)
    again = load(tmp_path)
    assert (type(again), again.pixels, again.around) == (NVILA, first.pixels, first.around)
    assert torch.equal(answer(first), answer(again))
    again.save(tmp_path / "more")
    third = load(tmp_path / "more")
    assert weights_version(third) == weights_version(first)
    assert third.tokenizer.chat_template == first.tokenizer.chat_template
    said = read_json(tmp_path / "more" / "config.json")
    assert said.keys() & {"resume_path", "_name_or_path", "auto_map"} == set()
    assert said["num_video_frames"] == 8
    assert {name.name for name in (tmp_path / "more").iterdir()} == {
        "config.json",
        "llm",
        "vision_tower",
        "mm_projector",
    }


def test_weights_in_pieces_and_under_older_names(folder: Path, copy: Path) -> None:
    load(folder).net.llm.save_pretrained(copy / "llm", max_shard_size="20KB")
    (copy / "llm" / "model.safetensors").unlink()
    old = {f"vision_model.{name}": x for name, x in load_file(copy / "vision_tower" / "model.safetensors").items()}
    save_file(old, copy / "vision_tower" / "model.safetensors", {"format": "pt"})
    state = load_file(copy / "mm_projector" / "model.safetensors")
    (copy / "mm_projector" / "model.safetensors").unlink()
    names = [f"model-{n}-of-2.safetensors" for n in (1, 2)]
    where = {key: names[place % 2] for place, key in enumerate(state)}
    for name in names:
        part = {key: x for key, x in state.items() if where[key] == name}
        save_file(part, copy / "mm_projector" / name, {"format": "pt"})
    (copy / "mm_projector" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert len(list((copy / "llm").glob("model-*.safetensors"))) > 2
    assert torch.equal(answer(load(copy)), answer(load(folder)))


def test_parts_configs_may_stand_in_the_root_alone(folder: Path, copy: Path) -> None:
    for name in ("llm", "vision_tower", "mm_projector"):
        (copy / name / "config.json").unlink()
    assert torch.equal(answer(load(copy)), answer(load(folder)))
    edit(copy / "config.json", llm_cfg="/somebody/llm")
    with pytest.raises(UserError, match=r"config.json is missing") as told:
        load(copy)
    assert told.value.where == str(copy / "llm")


def test_a_folders_config_stands_before_its_copy_in_the_root(folder: Path, copy: Path) -> None:
    edit(copy / "config.json", mm_projector_cfg={"mm_projector_type": "identity"}, vision_tower_cfg={"model_type": "x"})
    assert torch.equal(answer(load(copy)), answer(load(folder)))


def test_a_vocabulary_that_lacks_the_media_tokens_is_widened_the_same_each_time(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    short = len(words)
    llm, _ = tiny.parts(words, vocabulary=short, tied=False)
    tiny.model(words=tiny.tokenizer(), sizes={"tied": False}).save(tmp_path)
    llm.save_pretrained(tmp_path / "llm")
    first, again = load(tmp_path), load(tmp_path)
    assert first.lm_head.out_features == len(first.tokenizer) == short + 3
    order = ["<vila/sentinel>", "<image>", "<vila/video>"]
    assert first.tokenizer.convert_tokens_to_ids(order) == [short, short + 1, short + 2]
    assert weights_version(first) == weights_version(again)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        old, new = (dict(net.named_parameters())[name].detach() for net in (llm, first.net.llm))
        assert torch.equal(new[:short], old)
        assert_close(new[short:], old.mean(0).expand(3, -1))
    first.save(tmp_path / "wide")
    assert read_json(tmp_path / "wide" / "llm" / "config.json")["vocab_size"] == short + 3
    assert torch.equal(answer(load(tmp_path / "wide")), answer(first))


def test_tied_embeddings_stay_tied_when_widened() -> None:
    words = tiny.tokenizer()
    model = tiny.model(words=words, sizes={"vocabulary": len(words)})
    assert model.lm_head.weight is model.text.embed_tokens.weight
    assert model.lm_head.out_features == len(words)


def test_a_roomier_vocabulary_is_left_alone() -> None:
    assert tiny.model(sizes={"vocabulary": 400}).lm_head.out_features == 400


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float64"])
def test_all_parts_have_one_dtype(folder: Path, dtype: str) -> None:
    model = load_model(folder, dtype=dtype, device="cpu")
    want = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert {x.dtype for x in model.net.parameters()} == {want}
    assert model.encode([FILM])[0].level_LNE.dtype == want


def test_the_processors_constants_are_read(folder: Path, copy: Path) -> None:
    edit(copy / "vision_tower" / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    assert load(copy).pixels.mean == (0.1, 0.2, 0.3)
    (copy / "vision_tower" / "preprocessor_config.json").write_text("{}")
    assert load(copy).pixels == load(folder).pixels  # SigLIP's
    (copy / "vision_tower" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"vision_tower/preprocessor_config\.json is missing"):
        load(copy)
    edit(folder / "config.json", fps=0.25)


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_an_adapter_and_a_head_come_back_on_the_base(folder: Path, tmp_path: Path, kind) -> None:
    model = load(folder)
    before = answer(model)
    add_adapter(model, kind, 4, 8.0)
    head = add_head(model, seed=1)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.normal_(std=0.3)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    again = load(tmp_path / "adapter")
    assert torch.equal(answer(again), answer(model))
    assert not torch.equal(answer(again), before)
    assert torch.equal(again.heads["default"].weight, head.weight)
    assert all(".llm.model.layers." in name for name in again.adapter.weights())
    if kind == "lora":
        merge(again)
        again.save(tmp_path / "merged")
        assert_close(answer(load(tmp_path / "merged")), answer(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_notices_another_base(folder: Path, copy: Path, tmp_path: Path) -> None:
    for part in ("llm", "mm_projector"):
        model = load(copy)
        add_adapter(model, "lora", 4, 8.0)
        (tmp_path / part).mkdir()
        model.save(tmp_path / part)
        state = load_file(copy / part / "model.safetensors")
        save_file({name: x + 1 for name, x in state.items()}, copy / part / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="other weights than it was trained on"):
            load(tmp_path / part)


def test_quantized_layers_are_the_decoders(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.model(sizes={"width": 64}).save(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu", quantize="nf4")
    four = [name for name, part in model.net.named_modules() if type(part).__name__ == "Linear4bit"]
    assert len(four) == 14
    assert all(name.startswith("llm.model.layers.") for name in four)
    assert answer(model).isfinite().all()


def test_plan_and_memory_know_its_shape(folder: Path) -> None:
    model = load(folder)
    shape = known(str(folder), None).shape
    assert (shape.layers, shape.width, shape.vocab) == (2, 32, model.lm_head.out_features)
    assert shape.tower == 3 * (4 * 16**2 + 2 * 16 * 32)
    assert model.net.config.get_text_config().max_position_embeddings == 32768


def broken(copy: Path, what: str) -> Path:
    """The folder that the error must name."""
    part = what.partition(" ")[0]
    if what.endswith("missing"):
        shutil.rmtree(copy / part)
        return copy
    if what.endswith("weights"):
        (copy / part / "model.safetensors").unlink()
    elif what.endswith("torn"):
        whole = (copy / part / "model.safetensors").read_bytes()
        (copy / part / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        return copy / part / "model.safetensors"
    elif what == "llm tokenizer":
        (copy / part / "tokenizer.json").unlink()
    elif what == "llm kind":
        edit(copy / part / "config.json", model_type="llama")
    elif what == "vision_tower kind":
        edit(copy / part / "config.json", model_type="radio")
    elif what == "mm_projector kind":
        edit(copy / part / "config.json", mm_projector_type="mlp_downsample_3x3_fix")
        return copy / part
    elif what == "vision_tower size":
        edit(copy / part / "preprocessor_config.json", size={"height": 384, "width": 384})
        return copy / part / "preprocessor_config.json"
    return copy / part


@pytest.mark.parametrize(
    "what",
    [f"{part} {how}" for part in ("llm", "vision_tower", "mm_projector") for how in ("missing", "weights", "torn")]
    + ["llm tokenizer", "llm kind", "vision_tower kind", "mm_projector kind", "vision_tower size"],
)
def test_what_is_wrong_is_said_with_the_folder(copy: Path, what: str) -> None:
    where = broken(copy, what)
    with pytest.raises(UserError) as told:
        load(copy)
    assert told.value.where == str(where)


def test_llava_of_one_folder_is_not_ours() -> None:
    assert NVILA.reads({"model_type": "llava_llama", "llm_cfg": "x"})
    assert NVILA.reads({"model_type": "vila"})
    assert not NVILA.reads({"model_type": "llava_llama"})
    assert not NVILA.reads({"model_type": "qwen2", "llm_cfg": "x"})


def test_the_chat_template_is_the_tokenizers_unless_the_config_names_qwen2() -> None:
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    own = tiny.model(words=words).tokenizer.apply_chat_template
    assert own([{"role": "user", "content": "?"}], tokenize=False) == "?|"
    parts = [{"type": "text", "text": "a"}, {"type": "video"}, {"type": "text", "text": "b"}, {"type": "image"}]
    assert own([{"role": "user", "content": parts}] * 2, tokenize=False) == "a<vila/video>b<image>|" * 2
    words = tiny.tokenizer()
    words.chat_template = None
    qwen2 = tiny.model(words=words, chat_template="qwen2").tokenizer
    assert qwen2.chat_template.endswith(QWEN2)
    with pytest.raises(UserError, match="no chat template 'mistral'"):
        tiny.model(chat_template="mistral")
    words.chat_template = None
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        tiny.model(words=words)


def test_a_film_of_the_released_size_makes_the_released_number_of_tokens() -> None:
    sizes = {"image": 448}
    counts = {"mlp_downsample_2x2_fix": 256, "mlp_downsample_3x3_fix": 121, "linear": 1024}
    for kind, each in counts.items():
        model = tiny.model(kind, sizes=sizes)
        with torch.no_grad():
            made = model.encode([np.zeros((2, 448, 448, 3), np.uint8)])
        assert made[0].level_LNE.shape == (1, 2 * each, tiny.WIDTH)
    assert nvila_files.PROCESSOR in "".join(model.files())
