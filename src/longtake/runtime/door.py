"""The door for others: a shared prefix inside anybody's training loop, by their transformers model's own forward.

    row = longtake.pack_row(prompt_ids, answers)
    with longtake.shared_prefix(model, row.layout):
        out = model(row.ids_1T, position_ids=row.position_ids, logits_to_keep=row.predict_R)
        loss(row.score(out.logits).logprob_R).backward()

Inside, the decoder's attention function is ours, and a `Packed` goes with every call of a layer in the mask's place.
Gradient checkpointing keeps a layer's arguments, so it finds the layout there when it runs the layer again; even after
the block, if the model's own attention is sdpa: a mask may be an object that torch asks (as torch.nn.attention.bias).

T packed tokens, P prompt tokens, R tokens of all answers behind one another, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.maths.logprob import Scored, score_tokens
from longtake.maths.pack import pack
from longtake.models.attention import attend_text, check_shareable
from longtake.records import Layout, Prompt, Segment

NAME = "longtake_shared_prefix"  # of the attention function; no mask function has it, so transformers builds no mask
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A prompt and its answers as one row for `model(…)`. Example: pack_row([5, 6, 7], [[1, 2], [3, 4, 2]]).

    An answer's last token is predicted but never fed: the row of the example is 5 6 7 1 3 4.
    """

    layout: Layout
    ids_1T: Tensor  # int64
    position_ids: Tensor  # int64 [1, T], or [3, 1, T] where the prompt's positions have three rows
    predict_R: Tensor  # int64, the place in the row whose logits predict target_R: logits_to_keep
    target_R: Tensor  # int64
    lengths: tuple[int, ...]  # [G] tokens of each answer; they add up to R

    def to(self, device: torch.device | str) -> PackedRow:
        """The same with its tensors there."""
        ids, position = self.ids_1T.to(device), self.position_ids.to(device)
        predict, target = self.predict_R.to(device), self.target_R.to(device)
        return replace(self, ids_1T=ids, position_ids=position, predict_R=predict, target_R=target)

    def score(self, logits_1RV: Tensor, temperature: float = 1.0) -> Scored:
        """logprob_R of the answers' tokens and entropy_R (nats, no gradient) where they stood, in float32 at least.

        Raises ValueError for logits of other places than predict_R.
        """
        if logits_1RV.shape[:2] != (1, len(self.target_R)):
            shape = tuple(logits_1RV.shape[:2])
            raise ValueError(f"logits are {shape}, not (1, {len(self.target_R)}): pass logits_to_keep=row.predict_R")
        target_R = self.target_R.to(logits_1RV.device)
        return score_tokens(_widened, logits_1RV[0], target_R, temperature=temperature)

    def per_answer(self, number_R: Tensor) -> list[Tensor]:
        """[G] tensors: what belongs to each answer of one number for every answer token."""
        return list(number_R.split(self.lengths))


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pack_row(
    prompt_ids: Sequence[int] | Tensor,
    answers: Sequence[Sequence[int] | Tensor],
    positions: Tensor | None = None,
) -> PackedRow:
    """One row of a prompt and its answers (token ids, without padding); its tensors are on the CPU.

    positions: int64 [3, P] or [3, 1, P] of the prompt for M-RoPE; answers go on at their largest + 1. Without them the
    prompt counts from 0. Raises UserError.
    """
    prompt, told = _ints(prompt_ids), [_ints(answer) for answer in answers]
    if not prompt:
        raise UserError("nothing to pack", why="the prompt has no tokens")
    count = len(prompt)
    position_3P = torch.arange(count).expand(3, -1)
    if positions is not None:
        if positions.shape not in ((3, count), (3, 1, count)):
            why = f"they are {tuple(positions.shape)}, the prompt has {count} tokens"
            raise UserError("positions do not fit the prompt", why=why, fix=f"pass [3, {count}]")
        position_3P = positions.reshape(3, count).cpu()
    packed = pack([Prompt("row", tuple(prompt), (), position_3P, None, None)], [told], [[[1.0] * len(a) for a in told]])
    position_3T = packed.position_3T
    return PackedRow(
        layout=packed.layout,
        ids_1T=packed.ids_T[None],
        position_ids=position_3T[:1] if positions is None else position_3T[:, None],
        predict_R=packed.predict_R,
        target_R=packed.target_R,
        lengths=tuple(map(len, told)),
    )


def _ints(ids: Sequence[int] | Tensor) -> list[int]:
    if not isinstance(ids, Tensor):
        return list(ids)
    if ids.shape != (ids.numel(),) and ids.shape != (1, ids.numel()):
        raise UserError("token ids of several rows", why=f"they are {tuple(ids.shape)}", fix="pass one row at a time")
    return [int(token) for token in ids.flatten().tolist()]


@contextmanager
def shared_prefix(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Inside, `model(…)` takes rows of this layout: every answer reads its prefix, and the prefix is computed once.

    model: a transformers model, or one inside peft's or another wrapper; afterwards it is as before. The backward may
    come later (with gradient checkpointing: of models whose own attention is sdpa; else it raises UserError). Blocks
    may be nested: the innermost rules. Raises UserError for models whose answers cannot share a prefix, and in
    `model(…)` for arguments that do not fit.
    """
    decoder = _decoder(model)
    opened = _OPEN.setdefault(decoder, [])
    packed = Packed(layout, opened)
    before = decoder.config._attn_implementation
    AttentionInterface.register(NAME, _attend)
    decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        why = "it does not go through transformers' AttentionInterface"
        raise UserError(f"the attention of {type(decoder).__name__} cannot be replaced", why=why)
    opened.append(packed)
    handles = [decoder.register_forward_pre_hook(packed.checked, with_kwargs=True)]
    handles += [layer.register_forward_pre_hook(packed.handed, with_kwargs=True) for layer in decoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        opened.remove(packed)
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

    def __init__(self, layout: Layout, opened: list[Packed]) -> None:
        """`opened`: the decoder's blocks, innermost last."""
        self.row, self.opened = Row(layout), opened
        self.siblings = _siblings(layout)
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

    def checked(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Hook of the decoder: refuses arguments that would not mean what they say. Raises UserError."""
        if self.opened[-1] is not self:
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
        return args, kwargs | {"attention_mask": None, "use_cache": False}

    def handed(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Hook of a layer."""
        return (args, kwargs | {"attention_mask": self}) if self.opened[-1] is self else None

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


_OPEN: WeakKeyDictionary[nn.Module, list[Packed]] = WeakKeyDictionary()  # decoder → its open blocks


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
        why = "the model shares its config with another one, or was compiled before the block"
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


def _decoder(model: nn.Module) -> Any:
    """The text decoder inside. Raises UserError unless its answers can share a prefix."""
    net = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if net is None:
        raise UserError(f"no transformers model inside {type(model).__name__}")
    decoder: Any = net.get_decoder()
    if net.config.is_encoder_decoder or not isinstance(dict(decoder.named_children()).get("layers"), nn.ModuleList):
        raise UserError(f"{type(net).__name__} is no decoder with `layers`", why="those alone can share a prefix")
    check_shareable(net.config)
    return decoder


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
