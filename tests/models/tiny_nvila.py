"""A random NVILA of 100 000 parameters in its three folders: a 5 x 5 grid of patches, which both projectors pad."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file
from tests.models import tiny
from tests.plain.nvila import loop
from torch.nn.functional import gelu, layer_norm, linear
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from longtake.maths.attention import Row
from longtake.models.nvila import NVILA, QWEN2
from longtake.models.nvila_files import PROCESSOR, TOWER, read_pixels
from longtake.models.nvila_network import Composed, Eyes
from longtake.models.nvila_projector import Projector
from longtake.records import Layout
from longtake.runtime.inputs import fill

SIZE, PATCH, WIDTH = 70, 14, 32
TSP = {"_target_": "llava.model.encoders.TSPVideoEncoder"}
SCALED = {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True}
SCALED |= {"s2_scales": "70,140,210", "s2_resize_output_to_scale_idx": -1}


def tokenizer():
    words = tiny.tokenizer()
    words.chat_template = QWEN2
    return words


def root(**more):
    """A config.json; `pools` makes the film's encoder."""
    pools = more.pop("pools", None)
    said = {
        "model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "llm_cfg": "/somebody/llm",
        "vision_tower_cfg": "/somebody/tower", "mm_projector_cfg": "/somebody/projector", "resume_path": "/somebody",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize",
        "num_video_frames": 8, "chat_template": None,
    }  # fmt: skip
    if pools:
        said["video_encoder"] = json.dumps(TSP | {"pool_sizes": pools})
    return said | more


def parts(words, vocabulary=None, tied=True, head=False, image=SIZE, width=WIDTH):
    place = words.convert_tokens_to_ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llm = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocabulary or len(words), hidden_size=width, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.3,
                pad_token_id=place("<|endoftext|>"), bos_token_id=None, eos_token_id=place("<|im_end|>"),
            )
        )  # fmt: skip
        tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=image,
                patch_size=PATCH, vision_use_head=head,
            )
        )  # fmt: skip
        for net in (llm, tower):
            for x in net.parameters():
                torch.nn.init.normal_(x, std=0.2)
    return llm, tower


def model(kind="mlp_downsample_2x2_fix", words=None, column_major=False, sizes=None, **more):
    words = words or tokenizer()
    llm, tower = parts(words, **(sizes or {}))
    said = root(**more)
    channels = tower.config.hidden_size * (3 if said.get("dynamic_s2") else 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        projector = Projector(kind, channels, llm.config.hidden_size, column_major)
        for x in projector.parameters():
            torch.nn.init.normal_(x, std=0.2)
    with TemporaryDirectory() as folder:
        (Path(folder) / TOWER).mkdir()
        (Path(folder) / TOWER / PROCESSOR).write_text("{}")
        pixels = read_pixels(Path(folder), said, tower, projector)
    return NVILA(Composed(llm, Eyes(tower, projector, pixels), said), words)


def film(seed, frames, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


class Plain:
    """transformers' SigLIP and Qwen2 and a projector written out: one film, one prompt, nothing shared."""

    def __init__(self, folder: Path) -> None:
        self.llm = Qwen2ForCausalLM.from_pretrained(folder / "llm", dtype=torch.float64).eval()
        tiny.exact_norms(self.llm)
        self.tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", dtype=torch.float64).eval()
        state = load_file(folder / "mm_projector" / "model.safetensors")
        self.projector = {name: x.double().requires_grad_() for name, x in state.items()}

    def patches(self, frames_FHWC: np.ndarray, layer: int = -2) -> torch.Tensor:
        pixels = ((torch.from_numpy(frames_FHWC).float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).double()
        return self.tower(pixels, output_hidden_states=True).hidden_states[layer]

    def project(self, patch_NPC: torch.Tensor, column_major: bool = False) -> torch.Tensor:
        edge = 3 if "layers.7.weight" in self.projector else 2
        x = loop(patch_NPC, edge, column_major)
        for number in range(8):
            weight, bias = (self.projector.get(f"layers.{number}.{part}") for part in ("weight", "bias"))
            if weight is None:
                x = gelu(x) if number in (3, 6) and f"layers.{number + 1}.weight" in self.projector else x
            else:
                x = linear(x, weight, bias) if weight.ndim == 2 else layer_norm(x, weight.shape, weight, bias)
        return x

    def logits(self, prompt, token_NE: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(prompt.ids)
        embed = self.llm.model.embed_tokens(ids)
        embed = embed.index_copy(0, torch.cat([torch.arange(*run) for run in prompt.visual]), token_NE)
        return self.llm(inputs_embeds=embed[None], use_cache=False).logits[0]

    def named(self):
        """Parameters by the names that they have in our network."""
        yield from ((f"llm.{name}", x) for name, x in self.llm.named_parameters())
        yield from ((f"eyes.vision_tower.{name}", x) for name, x in self.tower.named_parameters())
        yield from ((f"eyes.mm_projector.{name}", x) for name, x in self.projector.items())


def logits(model, prompt, films):
    ids = torch.tensor(prompt.ids)
    visual = torch.zeros(len(ids), dtype=torch.bool)
    for start, stop in prompt.visual:
        visual[start:stop] = True
    embed, deepstack = fill(model, ids, visual, films)
    return model.head(model.hidden(embed, prompt.position_3P, visual, deepstack, Row(Layout(((len(ids), ()),)))))


def picture(width, height):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def still(shown):
    return replace(tiny.receipt(shown[None]), image=True)


def said(model, prompt):
    return model.tokenizer.decode(prompt.ids)
