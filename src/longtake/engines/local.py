"""The engine in the trainer's own process: same weights, same kernels, each prefix computed once for all its answers.

N questions, G answers each, A = N G, P prefix tokens (padded to the longest), t answer tokens so far, H heads,
K key/value heads, D head width, E model width, T packed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.maths.attention import decode_attention, shared_prefix_attention
from longtake.protocols import Model
from longtake.records import Answer, Draw, Features, Group, Layout, Prompt
from longtake.runtime.features import fill

FeaturesOf = Callable[[Sequence[str]], list[Features]]


FIRST = 64  # answer tokens there is room for at first; the room doubles as answers grow


class Prefill:
    """Attention of a row of prefixes that keeps every layer's keys and values."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.kept: list[tuple[Tensor, Tensor]] = []  # a layer: [K, T, D] twice

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.kept.append((k[0], v[0]))
        return shared_prefix_attention(q, k, v, self.layout, scale=scale)


class Decode:
    """Attention of one new token for every answer on kept prefixes and the answers' own keys and values."""

    def __init__(self, prefill: Prefill, answers: int, most: int) -> None:
        lengths = [prefix for prefix, _ in prefill.layout.groups]
        self.length_N = torch.tensor(lengths, device=prefill.kept[0][0].device)
        self.prefix = [(_padded(k, lengths), _padded(v, lengths)) for k, v in prefill.kept]
        heads, _, width = prefill.kept[0][0].shape
        shape = (len(lengths) * answers, heads, min(most, FIRST), width)
        self.own = [(k.new_empty(shape), v.new_empty(shape)) for k, v in prefill.kept]
        self.at, self.most = 0, most

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.at == self.own[layer][0].shape[2]:
            more = min(self.most, 2 * self.at) - self.at
            grown = [torch.cat([x, x.new_empty(*x.shape[:2], more, x.shape[3])], 2) for x in self.own[layer]]
            self.own[layer] = (grown[0], grown[1])
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept[:, :, self.at] = new[0].transpose(0, 1)
        own_k, own_v = (kept[:, :, : self.at + 1] for kept in self.own[layer])
        new_q = q[0].transpose(0, 1)[:, :, None]  # [N G, H, 1, D]
        out = decode_attention(new_q, *self.prefix[layer], self.length_N, own_k, own_v, scale=scale)
        return out[:, :, 0].transpose(0, 1)[None]


def _padded(x_KTD: Tensor, lengths: Sequence[int]) -> Tensor:
    """[K, T, D] of prefixes behind one another → [N, K, P, D], zeros at the end of the shorter ones."""
    parts = [part.transpose(0, 1) for part in x_KTD.split(list(lengths), dim=1)]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).transpose(1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Answers with the model itself.

    Example: LocalEngine(model, films.features, "sft-400").generate([prompt], [[Draw(1.0, 7)]], 48).
    """

    model: Model
    features: FeaturesOf  # handles → features
    weights: str  # version written on every answer
    row_tokens: int = 16384  # prefix tokens in one prefill
    answers: int = 512  # decoded together

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; every prompt has the same number of draws, and an answer depends on its own draw's seed alone.

        Raises ValueError for ragged draws, UserError for a model whose numbers are not finite.
        """
        if len({len(own) for own in draws}) > 1:
            raise ValueError("every prompt needs the same number of draws in one call")
        groups: list[Group] = []
        start = 0
        while start < len(prompts):
            stop, tokens = start + 1, len(prompts[start].ids)
            while stop < len(prompts) and tokens + len(prompts[stop].ids) <= self.row_tokens:
                if (stop + 1 - start) * len(draws[start]) > self.answers:
                    break
                tokens += len(prompts[stop].ids)
                stop += 1
            groups += self._batch(prompts[start:stop], draws[start:stop], max_tokens)
            start = stop
        return groups

    def _batch(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        per_prompt = len(draws[0])
        hidden_NE, decode = self._prefill(prompts, per_prompt, max_tokens)
        logits = self.model.head(hidden_NE).repeat_interleave(per_prompt, 0)
        if not logits.isfinite().all():
            why, fix = "its weights are damaged, or too large for their dtype", "try --dtype float32"
            raise UserError("the model computes no finite numbers", why=why, fix=fix)
        position = torch.tensor(
            [int(p.position_3P.max()) + 1 for p in prompts], device=logits.device
        ).repeat_interleave(per_prompt)
        flat = [draw for own in draws for draw in own]
        chance = np.stack([np.random.Generator(np.random.Philox(key=draw.seed)).random(max_tokens) for draw in flat])
        chance_At = torch.from_numpy(chance).to(logits.device)
        heat_A1 = torch.tensor([[draw.temperature] for draw in flat], device=logits.device)
        ends = torch.tensor(self.model.end_ids, device=logits.device)
        done_A = torch.zeros(len(flat), dtype=torch.bool, device=logits.device)
        ids, logprobs = [], []
        none = torch.zeros(len(flat), dtype=torch.bool, device=logits.device)
        for step in range(max_tokens):
            next_A = sample(logits, heat_A1, chance_At[:, step])
            ids.append(next_A)
            policy_AV = (logits / torch.where(heat_A1 > 0, heat_A1, 1)).log_softmax(-1)
            logprobs.append(policy_AV.gather(1, next_A[:, None])[:, 0])
            done_A |= torch.isin(next_A, ends)
            if done_A.all() or step == max_tokens - 1:
                break
            embed_AE = self.model.embed(next_A)
            hidden_AE = self.model.hidden(embed_AE, (position + step).expand(3, -1), none, None, decode)
            decode.at += 1
            logits = self.model.head(hidden_AE)
        return self._groups(prompts, draws, torch.stack(ids, 1).tolist(), torch.stack(logprobs, 1).tolist())

    def _prefill(self, prompts: Sequence[Prompt], answers: int, max_tokens: int) -> tuple[Tensor, Decode]:
        """Last hidden state of every prefix [N, E] and the state that decoding goes on from."""
        layout = Layout(tuple((len(prompt.ids), ()) for prompt in prompts))
        ids_T = torch.tensor([i for prompt in prompts for i in prompt.ids])
        visual_T = torch.zeros(len(ids_T), dtype=torch.bool)
        start = 0
        for prompt in prompts:
            for first, stop in prompt.visual:
                visual_T[start + first : start + stop] = True
            start += len(prompt.ids)
        embed_TE, deepstack = fill(
            self.model, ids_T, visual_T, self.features([p.features for p in prompts if p.features])
        )
        prefill = Prefill(layout)
        position_3T = torch.cat([prompt.position_3P for prompt in prompts], 1).to(embed_TE.device)
        hidden_TE = self.model.hidden(embed_TE, position_3T, visual_T.to(embed_TE.device), deepstack, prefill)
        last_N = torch.tensor([len(prompt.ids) for prompt in prompts]).cumsum(0) - 1
        return hidden_TE[last_N.to(hidden_TE.device)], Decode(prefill, answers, max_tokens)

    def _groups(
        self,
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        ids: list[list[int]],
        logprobs: list[list[float]],
    ) -> list[Group]:
        rows = iter(zip(ids, logprobs, strict=True))
        return [
            Group(prompt, tuple(self._answer(draw, *next(rows)) for draw in own))
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def _answer(self, draw: Draw, ids: list[int], logprobs: list[float]) -> Answer:
        """One answer cut at its end token."""
        end = next((place + 1 for place, token in enumerate(ids) if token in self.model.end_ids), None)
        kept = ids[:end]
        text = self.model.tokenizer.decode(kept[:-1] if end else kept, skip_special_tokens=False)
        return Answer(tuple(kept), tuple(logprobs[:end]), text, "stop" if end else "length", draw.seed, self.weights)


def sample(logits_AV: Tensor, heat_A1: Tensor, chance_A: Tensor) -> Tensor:
    """The token where the cumulative probability passes `chance`; temperature 0 takes the likeliest.

    chance_A is uniform in [0, 1). Inverse transform sampling: one number decides a token, whatever the batch holds.
    """
    greedy_A = logits_AV.argmax(-1)
    if not heat_A1.any():
        return greedy_A
    share_AV = (logits_AV.double() / heat_A1.clamp(min=1e-6)).softmax(-1).cumsum(-1)
    drawn_A = torch.searchsorted(share_AV, (chance_A * share_AV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(heat_A1[:, 0] > 0, drawn_A.clamp(max=logits_AV.shape[1] - 1), greedy_A)
