"""The door for others: a shared prefix inside anybody's training loop, by their transformers model's own forward.

    row = longtake.pack_row(prompt_ids, answers)
    with longtake.shared_prefix(model, row.layout):
        out = model(row.ids_1T, position_ids=row.position_ids, logits_to_keep=row.predict_R)
        loss(row.score(out.logits).logprob_R).backward()

Inside, the decoder's attention and mask functions are ours; the mask that goes to every layer is a `Packed`. Gradient
checkpointing keeps a layer's arguments, so it finds the layout there when it runs the layer again; even after the
block, if the model's own attention is sdpa: a mask may be an object that torch asks (as torch.nn.attention.bias).

T packed tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models.attention import attend_text, check_shareable
from longtake.records import Layout, Segment

NAME = "longtake_shared_prefix"  # of the two functions
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def shared_prefix(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Inside, `model(…)` takes rows of this layout: every answer reads its prefix, and the prefix is computed once.

    model: a transformers model, or one inside peft's or another wrapper; afterwards it is as before. The backward may
    come later (with gradient checkpointing: of models whose own attention is sdpa; else it raises UserError). Blocks
    may be nested: the innermost rules. Raises UserError for models whose answers cannot share a prefix, and in
    `model(…)` for arguments that do not fit.
    """
    net, decoder = _found(model)
    packed = Packed(layout)
    before = decoder.config._attn_implementation
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        why = "it does not go through transformers' AttentionInterface"
        raise UserError(f"the attention of {type(decoder).__name__} cannot be replaced", why=why)
    _OPEN.append((decoder.config, packed))
    handles = [part.register_forward_pre_hook(_check_labels, with_kwargs=True) for part in {model, net}]
    handles += [
        decoder.register_forward_pre_hook(packed.enter, with_kwargs=True),
        decoder.register_forward_hook(packed.leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _OPEN.remove((decoder.config, packed))
        decoder.set_attn_implementation(before)


class _Outside(UserError, AttributeError):
    """Someone else's attention function met a `Packed`."""


def _outside() -> NoReturn:
    raise _Outside(
        "a shared-prefix row met another attention function",
        why="gradient checkpointing runs layers again in the backward, which came after the block",
        fix='call backward() inside `with longtake.shared_prefix(…)`, or set_attn_implementation("sdpa")',
    )


class Packed:
    """Who sees whom in a row, in the place of a layer's mask. What takes it for a tensor meets a UserError."""

    def __init__(self, layout: Layout) -> None:
        self.row, self.siblings = Row(layout), _siblings(layout)
        self.running = False  # the decoder's forward
        self.kv_heads = 0  # of the model that met it

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        mask = (kwargs or {}).get("attn_mask")
        if func is not scaled_dot_product_attention or not isinstance(mask, Packed) or kwargs.get("dropout_p"):
            _outside()
        q, k, v = args
        k, v = (x[:, :: x.shape[1] // mask.kv_heads] for x in (k, v))  # transformers repeats key heads under a mask
        return mask.row(0, *_cast(q, k, v), kwargs["scale"])

    def __getitem__(self, at: Any) -> NoReturn:
        _outside()

    def __getattr__(self, name: str) -> NoReturn:
        _outside()

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Before the decoder: refuses arguments that would not mean what they say. Raises UserError."""
        if _innermost(decoder.config) is not self:
            return None
        total = self.row.layout.total
        given = dict(zip(("input_ids",), args, strict=False)) | kwargs
        tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if len(args) > 1 or not isinstance(tokens, Tensor):
            raise UserError("arguments by place", why="which is which cannot be told", fix="name them: position_ids=…")
        if tokens.shape[:2] != (1, total):
            why = f"it is {tuple(tokens.shape[:2])}, the layout says (1, {total})"
            raise UserError("the input is no row of this layout", why=why, fix="pass row.ids_1T, and nothing padded")
        if given.get("use_cache") or given.get("past_key_values") is not None:
            why = "a cache would hold answers that do not see one another"
            raise UserError(
                "a shared-prefix row takes no cache", why=why, fix="use_cache=False; generate outside the block"
            )
        _check_mask(given.get("attention_mask"), total)
        self._check_positions(given.get("position_ids"), total)
        _check_dropout(decoder)
        self.running = True
        return args, kwargs | {"attention_mask": None, "use_cache": False}

    def leave(self, decoder: nn.Module, args: Any, out: Any) -> None:
        """After the decoder."""
        self.running = False

    def _check_positions(self, position_ids: Tensor | None, total: int) -> None:
        here, first = self.siblings
        if not here:
            return
        fix = "pass position_ids=row.position_ids"
        if position_ids is None:
            raise UserError("a shared-prefix row needs position_ids", why="answers begin at the same one", fix=fix)
        rows = position_ids.reshape(-1, total)[-3:]
        if not torch.equal(rows[:, here], rows[:, first]):
            why = "positions count through the row"
            raise UserError("answers on one prefix begin at different positions", why=why, fix=fix)


_OPEN: list[tuple[Any, Packed]] = []  # blocks with their decoders' configs, the latest last


def _innermost(config: Any) -> Packed | None:
    return next((packed for own, packed in reversed(_OPEN) if own is config), None)


def _mask(config: Any, **other: Any) -> Packed:
    """The mask function inside a block."""
    packed = _innermost(config)
    if packed is None or not packed.running:
        why = "another model has the same config object; or a mask was made outside of the decoder"
        raise UserError(
            "a model was called without its row's layout", why=why, fix="give that model a config of its own"
        )
    return packed


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packed | Tensor | None,
    scaling: float,
    **other: Any,
) -> tuple[Tensor, None]:
    """The attention function inside a block → ([1, T, H, D], None)."""
    if not isinstance(attention_mask, Packed):
        why = "its decoder makes no mask by transformers' mask functions, or was compiled before the block"
        raise UserError(f"{type(module).__name__} was called without its row's layout", why=why)
    attention_mask.kv_heads = key.shape[1]
    q, k, v = _cast(query, key, value)
    return attend_text(module, q, k, v, None, scaling, **other | {"attention": attention_mask.row})


def _cast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What autocast does for torch's own attention."""
    kind = q.device.type
    if torch.is_autocast_enabled(kind) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    return q, k, v


def _found(model: nn.Module) -> tuple[PreTrainedModel, Any]:
    """The transformers model inside, and the text decoder inside that. Raises UserError for what cannot share."""
    net = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if net is None:
        raise UserError(f"no transformers model inside {type(model).__name__}")
    if net.config.is_encoder_decoder:
        raise UserError(f"{type(net).__name__} has an encoder", why="decoders alone can share a prefix")
    check_shareable(net.config)
    return net, net.get_decoder()


def _siblings(layout: Layout) -> tuple[list[int], list[int]]:
    """Where a segment begins that continues another, and where the first that continues that one does."""
    first: dict[int, int] = {}
    above: list[tuple[int, Segment]] = []
    found = []
    for number, segment in enumerate(layout.segments):
        while above and above[-1][1].stop <= segment.start:
            above.pop()
        if above and segment.length:
            found.append((segment.start, first.setdefault(above[-1][0], segment.start)))
        if segment.inner:
            above.append((number, segment))
    return [here for here, _ in found], [there for _, there in found]


def _check_labels(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        why = "the model would shift them over the borders of answers"
        raise UserError("a shared-prefix row takes no labels", why=why, fix="a loss of row.score(out.logits).logprob_R")


def _check_mask(mask: Any, total: int) -> None:
    """A mask of ones says nothing; any other is refused."""
    if mask is not None and not (isinstance(mask, Tensor) and mask.shape == (1, total) and bool(mask.all())):
        why = "its layout says who sees whom, and nothing in it is padding"
        raise UserError("a shared-prefix row takes no attention mask", why=why, fix="leave attention_mask out")


def _check_dropout(decoder: nn.Module) -> None:
    p = max(chain([0.0], (part.p for part in decoder.modules() if isinstance(part, nn.Dropout) and part.training)))
    if p:
        why = f"dropout is {p:g} somewhere in the decoder (LoRA's too): answers on one prefix would share its mask"
        raise UserError("dropout in a shared-prefix row", why=why, fix="set it to 0 (lora_dropout=0)")
