"""A model as vLLM reads it: a folder with transformers' files, adapters added to their base, the model untouched.

A network whose decoder counts plain positions goes as its bare decoder, under the class that transformers has for it as
text alone: what is seen reaches it as embeddings. One with M-RoPE goes whole, for its class knows the positions.
O/I width out of/into a layer, r rank.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.models.adapters import NAME
from longtake.models.network import Network
from longtake.models.quiet import quiet

SPARE = 256  # visual tokens beyond the context: not every number of them is a picture with sides


def export(model: Network, folder: Path, dtype: torch.dtype, context: int) -> None:
    """Writes it there, all weights in `dtype`. Raises UserError for what vLLM cannot compute.

    vLLM holds as many visual tokens as the largest picture of the checkpoint's processor may have, and refuses longer
    films: the processor's file there says that a picture may fill the context. No picture is processed by it.
    """
    if model.adapter is not None and model.adapter.kind == "alora":
        why, fix = "it acts from the assistant header on only, and vLLM serves none", "--engine.kind local"
        raise UserError("an aLoRA cannot answer through vLLM", why=why, fix=fix)
    if not all(x.is_floating_point() for x in model.net.parameters()):
        why, fix = "its weights go there in full", "leave --adapter.quantize out, or --engine.kind local"
        raise UserError("a quantized model cannot answer through vLLM", why=why, fix=fix)
    rope = model.text.config.rope_parameters
    kind = rope["rope_type"]
    if model.rope_rows == 3 and (kind == "linear" or (kind == "yarn" and not rope.get("mrope_interleaved"))):
        why, fix = (
            f"it does not compute {kind} of this family's M-RoPE",
            "--context.rope dynamic:N, or --engine.kind local",
        )
        raise UserError(f"vLLM cannot scale these positions by {kind}", why=why, fix=fix)
    with torch.no_grad(), quiet():
        state = {name: x.to("cpu", dtype) for name, x in merged(model).items()}
        net, state = _bare(model, state, context) if model.rope_rows == 1 else (_whole(model, context), state)
        tied = model.lm_head.weight is model.text.get_input_embeddings().weight
        own = {"lm_head.weight"} if tied else set()  # of two that share bytes only one would be written
        state = {name: x.clone() if name in own else x.contiguous() for name, x in state.items()}
        net.save_pretrained(folder, state_dict=state)
        model.tokenizer.save_pretrained(folder)
    if model.rope_rows != 1:
        largest = {"longest_edge": (context + SPARE) * model.pixels.factor**2}
        for name, content in model.files().items():
            picture = {"size": content["size"] | largest} if name == "preprocessor_config.json" else {}
            (folder / name).write_text(json.dumps({**content, **picture}))


def merged(model: Network) -> dict[str, Tensor]:
    """The network's weights by name, each with what the adapter adds to it; the network keeps its own."""
    layers = model.adapter.layers if model.adapter is not None else {}
    state = {name: x for name, x in model.net.state_dict().items() if ".lora_" not in name}
    for name, layer in layers.items():
        weight_OI = state[f"{name}.base_layer.weight"]
        b_Or, a_rI = layer.lora_B[NAME].weight, layer.lora_A[NAME].weight
        state[f"{name}.base_layer.weight"] = (weight_OI + b_Or @ a_rI * layer.scaling[NAME]).to(weight_OI.dtype)
    return {name.replace(".base_layer.", "."): x for name, x in state.items()}


def _whole(model: Network, context: int) -> Any:
    """The network, empty, its head apart from its embeddings: on a CPU vLLM packs a tied head once and never again, so
    that weights loaded later would not reach it.
    """
    config = type(model.net.config).from_dict(model.net.config.to_dict())  # without our attention functions' names
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    _lengthen(config, context)
    with torch.device("meta"):
        return type(model.net)(config)


def _bare(model: Network, state: dict[str, Tensor], context: int) -> tuple[Any, dict[str, Tensor]]:
    """The decoder alone: an empty network of its text class, and its weights by the names they have there."""
    from transformers import AutoModelForCausalLM

    owners = {id(module): f"{name}." for name, module in model.net.named_modules()}
    text, head = owners[id(model.text)], owners[id(model.lm_head)]
    config = copy.deepcopy(model.text.config)
    config.tie_word_embeddings = False
    _lengthen(config, context)
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(config)
    own = {f"model.{name.removeprefix(text)}": x for name, x in state.items() if name.startswith(text)}
    own |= {f"lm_head.{name.removeprefix(head)}": x for name, x in state.items() if name.startswith(head)}
    return alone, own


def _lengthen(config: Any, context: int) -> None:
    """vLLM reads no more tokens than config.json names positions; the trainer does. Plain and linear RoPE do not depend
    on that number.
    """
    text = config.get_text_config()
    if text.rope_parameters["rope_type"] in ("default", "linear"):
        text.max_position_embeddings = max(text.max_position_embeddings, context)
