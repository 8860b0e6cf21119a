"""Where decoding stands: the answers' own keys and values, and the prefixes that they share.

N questions, G answers each, A = N G, M prefixes of a level, P prefix tokens, t own tokens, K key/value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.maths.decode import Level, Readers, beyond, decode_attention
from longtake.records import Layout
from longtake.runtime.prefix import Prefill

FIRST = 64  # answer tokens there is room for at first; the room doubles as answers grow
Span = tuple[int, int]  # (start, stop) in a prefill's row
Pairs = list[tuple[Tensor, Tensor]]  # a layer: keys, values


class Decode:
    """Attention of one new token for every answer on kept prefixes and the answers' own keys and values."""

    def __init__(self, prefills: Sequence[Prefill], answers: int, most: int, begun: Pairs | None = None) -> None:
        """`answers` to every question, of at most `most` tokens; `begun`: keys and values [N, K, t, D] of tokens with
        which every answer to a question begins.
        """
        self.answers = list(range(len(_asked(prefills)) * answers))  # that are still decoded, by their first number
        self._owners = [question // answers for question in self.answers]
        self._prefills = prefills
        self._levels = [_levels(prefills, layer, self._owners) for layer in range(len(prefills[0].kv))]
        self.at = begun[0][0].shape[2] if begun else 0
        self.most = most + self.at
        k = prefills[0].kv[0][0]
        shape = (len(self.answers), k.shape[1], min(self.most, max(FIRST, 2 * self.at)), k.shape[3])
        self.own = [(k.new_empty(shape), k.new_empty(shape)) for k, _ in prefills[0].kv]
        for kept, first in zip(self.own, begun or (), strict=False):
            for room, tokens in zip(kept, first, strict=True):
                room[:, :, : self.at] = tokens.repeat_interleave(answers, 0)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.at == self.own[layer][0].shape[2]:
            more = min(self.most, 2 * self.at) - self.at
            grown = [torch.cat([x, x.new_empty(*x.shape[:2], more, x.shape[3])], 2) for x in self.own[layer]]
            self.own[layer] = (grown[0], grown[1])
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept[:, :, self.at] = new[0].transpose(0, 1)
        own_k, own_v = (kept[:, :, : self.at + 1] for kept in self.own[layer])
        new_q = q[0].transpose(0, 1)[:, :, None]  # [A, H, 1, D]
        out = decode_attention(new_q, self._levels[layer], own_k, own_v, scale=scale)
        return out[:, :, 0].transpose(0, 1)[None]

    def only(self, alive: Sequence[int]) -> None:
        """Goes on with these of its answers (places among those it has now) alone."""
        self.answers = [self.answers[place] for place in alive]
        self._owners = [self._owners[place] for place in alive]
        index = torch.tensor(alive, device=self.own[0][0].device)
        self.own = [(k[index], v[index]) for k, v in self.own]
        self._levels = [_levels(self._prefills, layer, self._owners) for layer in range(len(self.own))]


def _levels(prefills: Sequence[Prefill], layer: int, owners: Sequence[int]) -> list[Level]:
    """One layer's prefixes for answers that ask the questions `owners`: films that several questions share, then all
    else of the prompts.
    """
    asked = _asked(prefills)
    films: list[tuple[int, Span] | None] = []  # (prefill, span); None for a question that shares nothing
    for number, film, _ in asked:
        films.append(None if film is None else (number, film))
    parts = [(number, span) for number, _, span in asked]
    used = sorted(set(owners))
    found = []
    if any(films[question] for question in used):
        found.append(_level(prefills, layer, [films[question] for question in used], used, owners))
    found.append(_level(prefills, layer, [parts[question] for question in used], used, owners))
    return found


def _level(
    prefills: Sequence[Prefill],
    layer: int,
    parts: Sequence[tuple[int, Span] | None],
    used: Sequence[int],
    owners: Sequence[int],
) -> Level:
    """`parts` of the questions `used`; neighbours that are the same are read once."""
    each: list[tuple[int, Span] | None] = []
    place = {}  # question → its prefix
    for question, part in zip(used, parts, strict=True):
        if not each or part != each[-1]:
            each.append(part)
        place[question] = len(each) - 1
    device = prefills[0].kv[0][0].device
    readers = Readers.of([place[question] for question in owners], device)
    k, v = (_together([_cut(prefills, layer, side, part) for part in each]) for side in (0, 1))
    return Level(k, v, beyond([0 if part is None else part[1][1] - part[1][0] for part in each], device), readers)


def _cut(prefills: Sequence[Prefill], layer: int, side: int, part: tuple[int, Span] | None) -> Tensor:
    """Keys (side 0) or values [K, P, D] of a span."""
    if part is None:
        return prefills[0].kv[layer][side][0, :, :0]
    number, (start, stop) = part
    return prefills[number].kv[layer][side][0, :, start:stop]


def _together(parts: Sequence[Tensor]) -> Tensor:
    """[K, P, D] of each → [M, K, P, D], zeros at the end of the shorter ones; one alone is not copied."""
    if len(parts) == 1:
        return parts[0][None]
    padded = torch.nn.utils.rnn.pad_sequence([part.transpose(0, 1) for part in parts], batch_first=True)
    return padded.transpose(1, 2).contiguous()


def _asked(prefills: Sequence[Prefill]) -> list[tuple[int, Span | None, Span]]:
    """Of every question: its prefill, the span of the film that it shares with others, the span of its own."""
    return [(number, film, own) for number, made in enumerate(prefills) for film, own in _spans(made.layout)]


def _spans(stem: Layout) -> list[tuple[Span | None, Span]]:
    found: list[tuple[Span | None, Span]] = []
    film: Span | None = None
    stop = 0  # of the film's questions
    for segment in stem.segments:
        own = (segment.start, segment.start + segment.length)
        if segment.start >= stop:
            film = None
        if segment.stop > own[1]:
            film, stop = own, segment.stop
        else:
            found.append((film, own))
    return found
