"""Where decoding stands: the answers' own keys and values, and the prefixes that they share.

N questions, G answers each, A = N G, M prefixes of a level, P prefix tokens, t own tokens, K key/value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.maths.decode import LOW, Level, Readers, beyond, decode_attention
from longtake.runtime.prefix import Prefill

FIRST = 64  # answer tokens there is room for at first; the room doubles as answers grow
Part = tuple[int, int, int]  # (prefill, start, stop)
NOTHING: Part = (0, 0, 0)
Pairs = list[tuple[Tensor, Tensor]]  # a layer: keys, values


class Decode:
    """Attention of one new token for every answer on kept prefixes and the answers' own keys and values.

    Before a step: `make_room`, `enter`; after it `moving` numbers on the device and `at` are one more.
    """

    def __init__(
        self,
        prefills: Sequence[Prefill],
        answers: int,
        most: int,
        begun: Pairs | None = None,
        *,
        static: bool = False,
    ) -> None:
        """`answers` to every question, of at most `most` tokens; `begun`: keys and values [N, K, t, D] of tokens with
        which every answer to a question begins. `static`: a step reads all the room there is, and where its tokens go
        from the device, so that one recording of it serves until the room grows; else it reads the tokens there are.
        """
        self._prefills, self._asked = prefills, _asked(prefills)
        self.answers = list(range(len(self._asked) * answers))  # that are still decoded, by their first number
        self._owners = [question // answers for question in self.answers]
        self._kv: dict[tuple[Part, ...], Pairs] = {}  # what a level reads → that of every layer
        self._levels = self._look()
        self.at = begun[0][0].shape[2] if begun else 0  # own tokens of every answer
        self.most = most + self.at
        k = prefills[0].kv[0][0]
        shape = (len(self.answers), k.shape[1], min(self.most, max(FIRST, 2 * self.at)), k.shape[3])
        self.own = [(k.new_zeros(shape), k.new_zeros(shape)) for k, _ in prefills[0].kv]
        for kept, first in zip(self.own, begun or (), strict=False):
            for room, tokens in zip(kept, first, strict=True):
                room[:, :, : self.at] = tokens.repeat_interleave(answers, 0)
        self._place_1 = torch.tensor([self.at], device=k.device) if static else None
        self._unseen_t = self._unseen(shape[2], self.at)

    @property
    def room(self) -> int:
        """Own tokens there is room for."""
        return self.own[0][0].shape[2]

    @property
    def moving(self) -> list[Tensor]:
        """What a step counts up by one on the device."""
        return [] if self._place_1 is None else [self._place_1]

    def make_room(self) -> bool:
        """Room for one more token; true if it had to grow."""
        room = self.room
        if self.at < room:
            return False
        more = min(self.most, 2 * room) - room
        self.own = [(_longer(k, more), _longer(v, more)) for k, v in self.own]
        self._unseen_t = self._unseen(room + more, self.at)
        return True

    def enter(self) -> None:
        """The new token is to see itself; part of the step."""
        if self._place_1 is not None:
            self._unseen_t.index_fill_(0, self._place_1, 0.0)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        own_k, own_v = self.own[layer]
        unseen_t = None
        for room, new in ((own_k, k), (own_v, v)):
            token = new[0].transpose(0, 1)  # [A, K, D]
            if self._place_1 is None:
                room[:, :, self.at] = token
            else:
                room.index_copy_(2, self._place_1, token[:, :, None])
        if self._place_1 is None:
            own_k, own_v = own_k[:, :, : self.at + 1], own_v[:, :, : self.at + 1]
        else:
            unseen_t = self._unseen_t
        new_q = q[0].transpose(0, 1)[:, :, None]  # [A, H, 1, D]
        out = decode_attention(new_q, self._levels[layer], own_k, own_v, scale=scale, unseen=unseen_t)
        return out[:, :, 0].transpose(0, 1)[None]

    def only(self, alive: Sequence[int]) -> None:
        """Goes on with these of its answers (places among those it has now) alone."""
        self.answers = [self.answers[place] for place in alive]
        self._owners = [self._owners[place] for place in alive]
        index = torch.tensor(alive, device=self.own[0][0].device)
        self.own = [(k[index], v[index]) for k, v in self.own]
        self._levels = self._look()

    def _unseen(self, room: int, seen: int) -> Tensor:
        """[t] for decode_attention: `seen` of the places in the room hold a token."""
        unseen_t = torch.full((room,), LOW, device=self.own[0][0].device)
        unseen_t[:seen] = 0.0
        return unseen_t

    def _look(self) -> list[list[Level]]:
        """What every layer reads for the answers that are left; what is read on stays where it is."""
        depths = _depths(self._asked, self._owners)
        self._levels = []
        self._kv = {parts: self._kv[parts] for parts, _ in depths if parts in self._kv}
        found: list[list[Level]] = [[] for _ in self._prefills[0].kv]
        for parts, place_A in depths:
            kv = self._kv.setdefault(parts, [])
            kv += [] if kv else [_together(self._prefills, layer, parts) for layer in range(len(found))]
            device = kv[0][0].device
            readers = Readers.of(place_A, device)
            filling = beyond([stop - start for _, start, stop in parts], device)
            for levels, (k, v) in zip(found, kv, strict=True):
                levels.append(Level(k, v, filling, readers))
        return found


def _depths(asked: Sequence[tuple[Part, Part]], owners: Sequence[int]) -> list[tuple[tuple[Part, ...], list[int]]]:
    """For answers that ask the questions `owners`: films that several questions share, then all else of the prompts.

    Each as its parts, neighbours that are the same only once, and for every answer which of them it reads.
    """
    found = []
    for depth in (0, 1):
        parts: list[Part] = []
        place: dict[int, int] = {}  # question → its part
        for question in sorted(set(owners)):
            part = asked[question][depth]
            if not parts or part != parts[-1]:
                parts.append(part)
            place[question] = len(parts) - 1
        if any(stop > start for _, start, stop in parts):
            found.append((tuple(parts), [place[question] for question in owners]))
    return found


def _together(prefills: Sequence[Prefill], layer: int, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """A layer's keys and values [M, K, P, D] of these parts, zeros at the end of the shorter ones."""
    k, v = ([prefills[number].kv[layer][side][0, :, start:stop] for number, start, stop in parts] for side in (0, 1))
    return _padded(k), _padded(v)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """[K, P, D] of each to [M, K, P, D]; one alone is not copied."""
    if len(parts) == 1:
        return parts[0][None]
    padded = torch.nn.utils.rnn.pad_sequence([part.transpose(0, 1) for part in parts], batch_first=True)
    return padded.transpose(1, 2).contiguous()


def _longer(x: Tensor, more: int) -> Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:2], more, x.shape[3])], 2)


def _asked(prefills: Sequence[Prefill]) -> list[tuple[Part, Part]]:
    """Of every question: the film that it shares with others, and its own part of the prompt."""
    found = []
    for number, made in enumerate(prefills):
        film, stop = NOTHING, 0  # where the film's questions end
        for segment in made.layout.segments:
            own = (number, segment.start, segment.start + segment.length)
            if segment.start >= stop:
                film = NOTHING
            if segment.stop > own[2]:
                film, stop = own, segment.stop
            else:
                found.append((film, own))
    return found
