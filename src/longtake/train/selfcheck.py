"""Before a run learns: its own data through the fast path and through the plain one, values and gradients.

The plain path computes a prompt with ordinary causal attention, then one answer at a time on a copy of its keys and
values, and leaves everything to autograd. Parameters get the plain gradient and then minus the fast one: what is left
is the difference, and no second copy of a large model's gradients is needed.

P prompt tokens, R answer tokens, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from longtake.errors import UserError
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack, stem
from longtake.parallel.fsdp import learning, norm_of
from longtake.protocols import Model
from longtake.records import Features, PrefixRow, Prompt
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import extend, finish
from longtake.runtime.rows import compute, lead
from longtake.train.step import Passes

PROMPT, ANSWER, ANSWERS = 2048, 64, 2  # tokens of a prompt and of an answer, answers: more is cut
MOST = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}  # of the gradient's norm


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the two paths are apart. Example: Agreement(2e-7, 3e-7, 2048, 2)."""

    logprob: float  # largest difference
    gradient: float  # norm of the difference as a share of the norm; 0 without a gradient
    prompt: int  # tokens
    answers: int

    def __str__(self) -> str:
        size = f"{self.prompt} prompt tokens, {self.answers} answers"
        return f"self-check: log-probabilities agree to {self.logprob:.1e}, gradients to {self.gradient:.1e} ({size})"


def check(
    model: Model,
    params: Sequence[nn.Parameter],
    prompt: Prompt,
    answers: Sequence[Sequence[int]],
    films: Sequence[Features],
    passes: Passes,
) -> Agreement:
    """Compares the paths on (the beginning and end of) a prompt and some answers. Gradients there were are gone.

    Raises UserError if they do not agree.
    """
    kept, films = _cut(prompt, films, lead(model))
    ids = [tuple(answer[:ANSWER]) for answer in answers if len(answer)][:ANSWERS]
    weights = [[1.0 + 0.1 * g] * len(answer) for g, answer in enumerate(ids)]
    row = pack([kept], [ids], [weights], lead=lead(model), dtype=torch.float32)
    _clear(params)
    with learning(model.layers):
        plain_R = torch.cat([_plain(model, kept, answer, own, films) for answer, own in zip(ids, weights, strict=True)])
    norm = _norm(params)
    with learning(model.layers):
        fast_R = _fast(model, row, films, passes)
    left = _norm(params)
    _clear(params)
    share = left / norm if norm else 0.0
    found = Agreement(float((plain_R - fast_R).abs().max()), share, len(kept.ids), len(ids))
    bound = MOST[model.net.dtype]
    if not (share <= bound and found.logprob <= 10 * bound):
        why = f"{found}; at most {bound:g} of the gradient's norm is rounding"
        fix = "try --memory.keep layers or --dtype float32, and report it with the output of longtake doctor"
        raise UserError("the fast path does not compute what the plain one does on this machine", why=why, fix=fix)
    return found


def _plain(model: Model, prompt: Prompt, answer: tuple[int, ...], weight: list[float], films: list[Features]) -> Tensor:
    """Log-probabilities of one answer [R] and the gradient of their weighted sum."""
    row = pack([prompt], [[answer]], [[weight]], lead=lead(model))
    device, alone = model.net.device, stem(row)
    (part,) = answer_rows(row, len(row.ids_T))
    seen = _Plain()
    aside = model.adapter is not None and lead(model) > 0
    with model.adapter.off() if aside else nullcontext(), torch.set_grad_enabled(not aside):
        embed_UE, deepstack = fill(model, alone.ids_T, alone.visual_T, films)
        prefix_UE = model.hidden(embed_UE, alone.position_3T.to(device), alone.visual_T.to(device), deepstack, seen)
    hidden = [prefix_UE[-1:]]
    if len(part.ids_A):
        none = torch.zeros(len(part.ids_A), dtype=torch.bool, device=device)
        hidden.append(model.hidden(model.embed(part.ids_A), part.position_3A.to(device), none, None, seen))
    table = torch.cat(hidden)[part.source_R.to(device)]
    logprob_R = score_tokens(model.head, table, part.target_R.to(device)).logprob_R
    (logprob_R * part.weight_R.to(logprob_R)).sum().backward()
    return logprob_R.detach()


def _fast(model: Model, row: PrefixRow, films: list[Features], passes: Passes) -> Tensor:
    """The same for all answers, with the gradient of minus the sum."""
    made = compute(model, stem(row), lambda handles: films, "nothing" if lead(model) else passes.keep)
    found = []
    for part in answer_rows(row, passes.answer_tokens):
        device = model.net.device
        here = replace(part, position_3A=part.position_3A.to(device), target_R=part.target_R.to(device))
        logprob_R = score_tokens(model.head, extend(model, made, here), here.target_R).logprob_R
        (-logprob_R * part.weight_R.to(logprob_R)).sum().backward()
        found.append(logprob_R.detach())
    if made.keep != "nothing":
        finish(model, made, tile=passes.tile)
    return torch.cat(found)


class _Plain:
    """Causal attention by torch; a second pass reads a copy of the first one's keys and values before its own. No
    dataclass: FSDP would copy it for every layer.
    """

    def __init__(self) -> None:
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if layer not in self.kv:
            self.kv[layer] = (k, v)
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        before_k, before_v = self.kv[layer]
        own, before = q.shape[2], before_k.shape[2]
        mask = torch.ones(own, before + own, dtype=torch.bool, device=q.device).tril(before)
        keys, values = torch.cat([before_k, k], 2), torch.cat([before_v, v], 2)
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def _cut(prompt: Prompt, films: Sequence[Features], lead: int) -> tuple[Prompt, list[Features]]:
    """At most PROMPT tokens: the beginning, and an eighth of them from the end; features of what is left."""
    count, end = len(prompt.ids), max(PROMPT // 8, lead)
    keep_P = torch.ones(count, dtype=torch.bool)
    if count > PROMPT:
        keep_P[PROMPT - end : count - end] = False
    seen_P = torch.zeros(count, dtype=torch.bool)
    for start, stop in prompt.visual:
        seen_P[start:stop] = True
    left = keep_P[seen_P]
    kept = seen_P[keep_P].tolist()
    ids = tuple(token for token, kept_too in zip(prompt.ids, keep_P.tolist(), strict=True) if kept_too)
    visual = tuple((place, place + 1) for place, here in enumerate(kept) if here)
    cut = [Features(film.level_LNE.detach()[:, left.to(film.level_LNE.device)]) for film in films]
    return replace(prompt, ids=ids, visual=visual, position_3P=prompt.position_3P[:, keep_P]), cut


def _norm(params: Sequence[nn.Parameter]) -> float:
    grads = [p.grad for p in params if p.grad is not None]
    return float(norm_of(grads)) if grads else 0.0


def _clear(params: Sequence[nn.Parameter]) -> None:
    for p in params:
        p.grad = None
