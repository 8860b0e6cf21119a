"""A run's films: decoded once, encoded once, met everywhere else as prompts with a handle and a receipt.

F frames, L feature levels, N visual tokens, E model width.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from longtake.data.cache import FrameTier, Quarantine
from longtake.data.frames import check, picked
from longtake.data.subtitles import seen, told
from longtake.data.video import VideoError
from longtake.data.workers import Fit
from longtake.errors import UserError
from longtake.parallel.ranks import How, Ranks
from longtake.protocols import Model
from longtake.records import Features, FramePolicy, Pick, Prompt, Question, Receipt
from longtake.runtime.encode import Request, decoded, encoded
from longtake.runtime.features import MOST_FILMS, FeatureStore, cut, encode, prepare
from longtake.runtime.onlooker import Onlooker, sent
from longtake.runtime.shelf import Say

Control = Literal["", "no_video", "shuffled", "one_frame"]
Progress = Callable[[int, int], None]


KEPT_TOKENS = 4_000_000  # of prompts in memory: 32 bytes each


@dataclass(frozen=True, slots=True)
class Look:
    """A question and how its film is looked at. Example: Look(question, FramePolicy(frames=64), "shuffled")."""

    question: Question
    policy: FramePolicy
    control: Control = ""

    def seen(self) -> tuple[str | None, FramePolicy, bool]:
        """What decides the features: film, policy, shuffled."""
        policy = replace(self.policy, frames=1, fps=None, seconds=None) if self.control == "one_frame" else self.policy
        return (None if self.control == "no_video" else self.question.video), policy, self.control == "shuffled"


class Films:
    """Frames, features and prompts of a run.

    With a `store` the tower is frozen and every set of frames is encoded once; without one features are made anew in
    every call, with gradients, for a tower that is being trained.

    `ranks` share the work: all of them call `decode` and `encode`, all of a sequence `features`, with the same films.
    """

    def __init__(
        self,
        model: Model,
        tier: FrameTier,
        store: FeatureStore | None,
        quarantine: Quarantine,
        ranks: Ranks = Ranks(),  # noqa: B008 — frozen
    ) -> None:
        self.model, self.tier, self.store, self.quarantine, self.ranks = model, tier, store, quarantine, ranks
        self._live: dict[str, tuple[str, FramePolicy, bool]] = {}
        self._prompts: dict[tuple[object, ...], Prompt] = {}
        self._held = 0  # tokens of the prompts kept
        self._settled: dict[tuple[str, FramePolicy], FramePolicy] = {}
        self._tokens: dict[tuple[int, int, int, bool], int] = {}
        self._asked: set[Path] = set()  # films that decode() was asked for
        self.sets = 0  # of frames that may be encoded, as far as is known
        self.subtitles = True  # whether those of the rows are read
        self.pick: Pick | None = None  # of looks that name none
        self.budget: int | None = None  # visual tokens, likewise
        self.longest = 0  # tokens of a prompt, of those seen when the ranks were spread
        self.sequence: int | None = None  # ranks that share a prefix; None = as the longest prompt asks for
        self.attention: How = "gather"  # of these
        self.rated = False  # whether any of them is looked at by frames a second

    def decode(self, wants: dict[str, Sequence[FramePolicy]], workers: int, progress: Progress) -> None:
        """Decodes every film once for all its policies; what fails is in the quarantine with its reason."""
        names = {Path(path): path for path in wants}
        self._asked |= names.keys()

        def planned(film: Path) -> Sequence[FramePolicy]:
            return list(dict.fromkeys(self._planned(names[film], wants[names[film]])))

        fit, world = self.model.fit, self.ranks.world
        decoded(self.tier, list(names), planned, fit, workers, self.quarantine, progress, world)

    def settled(self, film: str, policy: FramePolicy) -> FramePolicy:
        """The policy with what the run says where it says nothing: its pick, and as many frames as the budget allows.

        The budget stays in it where it left frames out. Raises UserError if not even one frame is within it.
        """
        if (film, policy) not in self._settled:
            given = replace(policy, budget=None)
            if isinstance(self.model, Onlooker):
                found = sent(policy, self.pick)
            else:
                found = picked(given, self.pick)
                check(found)
                limit = policy.budget or self.budget
                found = found if limit is None else self._within(limit, film, found)
            self._settled[film, policy] = found
        return self._settled[film, policy]

    def _within(self, limit: int, film: str, policy: FramePolicy) -> FramePolicy:
        def tokens(frames: int) -> int:
            return self._counted(film, policy if policy.seconds else replace(policy, max_frames=frames))

        receipt = self._foreseen(film, policy)
        most = len(receipt.indices) - receipt.padded
        if tokens(most) <= limit:
            return policy
        least = most if policy.seconds else 1
        if tokens(least) > limit:
            what = f"{least} frame{'s' * (least > 1)} of a film {'are' if least > 1 else 'is'} beyond the budget"
            why = f"{tokens(least)} visual tokens, of {limit} allowed"
            raise UserError(what, where=film, why=why, fix="raise --context.budget, or lower --video.max-pixels")
        return replace(policy, max_frames=bisect_right(range(1, most), limit, key=tokens), budget=limit)

    def _counted(self, film: str, policy: FramePolicy) -> int:
        """Visual tokens that the model makes of these frames; films of one size need one prompt for all."""
        receipt = self._foreseen(film, policy)
        key = receipt.width, receipt.height, len(receipt.indices), receipt.image
        if key not in self._tokens:
            prompt = self.model.prompt(Question("budget", film, ""), receipt, None)
            assert prompt.receipt is not None
            self._tokens[key] = prompt.receipt.tokens
        return self._tokens[key]

    def _foreseen(self, film: str, policy: FramePolicy) -> Receipt:
        return self.tier.foreseen(Path(film), policy, self.model.fit, self.model.temporal_patch)

    def _planned(self, film: str, policies: Sequence[FramePolicy]) -> Sequence[FramePolicy]:
        try:
            return [self.settled(film, policy) for policy in policies]
        except VideoError:  # whoever decodes it says why
            return policies

    @property
    def used(self) -> int:
        """How many of the films that decode() was ever asked for can be used."""
        return sum(not self.quarantine.holds(path) for path in self._asked)

    def encode(self, looks: Sequence[Look], progress: Progress, say: Say = lambda text: None) -> tuple[int, int]:
        """Encodes what the store lacks, in the order of `looks`: (sets of frames looked at, those that were not there).

        They are the ones needed now, until the next call. `say` hears what people should know of the store.
        Nothing to do without a store. Raises UserError if features must go to a folder that is read-only.
        """
        if self.store is None:
            return 0, 0
        seen = dict.fromkeys(look.seen() for look in looks)
        requests = [self._request(film, policy, mixed) for film, policy, mixed in seen if film is not None]
        sets, pixels = max(self.sets, len(requests)), sum(request.pixels for request in requests)
        self.store.expected = sets, sets * pixels // max(1, len(requests))
        self.store.pin([request.key for request in requests], say)
        return len(requests), prepare(self.store, self.model, requests, progress=progress, axis=self.ranks.world)

    def _request(self, film: str, policy: FramePolicy, shuffled: bool) -> Request:
        receipt = self._receipt(film, policy, shuffled)
        shape = len(receipt.indices), receipt.height, receipt.width, 3
        frames = partial(self._pixels, film, policy, shuffled)
        still = receipt.image and self.model.stills
        return Request(self._key(receipt), prod(shape[:3]), frames, shape[1:] if still else shape)

    def usable(self, question: Question) -> bool:
        """False for a question on a quarantined film."""
        return question.video is None or not self.quarantine.holds(Path(question.video))

    def receipt(self, look: Look) -> Receipt | None:
        """What the model will see of this look's film; None without one."""
        film, policy, shuffled = look.seen()
        return None if film is None else self._receipt(film, policy, shuffled)

    def told(self, look: Look) -> Question:
        """The question as the model reads it: with the film's subtitles. The control `no_video` takes frames alone."""
        return told(look.question, look.policy) if self.subtitles else look.question

    def prompt(self, look: Look) -> Prompt:
        """The one token sequence for this look; the last ones made are kept, up to KEPT_TOKENS."""
        film, policy, shuffled = look.seen()
        key = (look.question.id, self.told(look).text, film, policy, shuffled)
        if key not in self._prompts:
            prompt = self._made(look)
            self._prompts[key] = prompt
            self._held += len(prompt.ids)
            while self._held > KEPT_TOKENS and len(self._prompts) > 1:
                self._held -= len(self._prompts.pop(next(iter(self._prompts))).ids)
        return self._prompts[key]

    def _made(self, look: Look) -> Prompt:
        question, (film, policy, shuffled) = self.told(look), look.seen()
        if film is None:
            return self.model.prompt(question, None, None)
        lines = len(seen(look.question, look.policy)) if self.subtitles else 0
        receipt = replace(self._receipt(film, policy, shuffled), subtitles=lines)
        return self.model.prompt(question, receipt, self._handle(receipt, film, policy, shuffled))

    def features(self, handles: Sequence[str]) -> list[Features]:
        """Features of handles, in order: from the store, or from the tower as it is now (with its gradient).

        What the store no longer has is encoded again. Raises UserError if another process keeps deleting it.
        """
        if self.store is not None:
            return self._stored(self.store, handles)
        requests = [self._request(*self._live[handle]) for handle in handles]
        return encoded(self.model, requests, self.ranks.sequence)[0] if handles else []

    def _stored(self, store: FeatureStore, handles: Sequence[str]) -> list[Features]:
        axis = self.ranks.sequence
        found = {handle: store.get(handle) for handle in handles}
        for _ in range(3):  # what another process made meanwhile, it may delete as well
            missing = set().union(*axis.gather({handle for handle, made in found.items() if made is None}))
            if not missing:
                return [made for handle in handles if (made := found[handle])]
            # encoded together, in the order in which they were asked for: the same bits
            lost = missing.union(*axis.gather(store.lost()))
            seen = axis.first([seen for key, seen in self._live.items() if key in lost])
            for films in cut([self._request(*one) for one in seen], MOST_FILMS if axis.first(store.writes) else 1):
                found |= encode(store, self.model, films, axis)
            found |= {handle: found[handle] or store.get(handle) for handle in missing}
        fix = "give each run its own --video.features, or raise --video.features-disk"
        raise UserError("features disappear as soon as they are made", why="another process deletes them", fix=fix)

    def frames(self, look: Look) -> np.ndarray:
        """The frames of a look, uint8 [F, H, W, 3], as the model gets them."""
        film, policy, shuffled = look.seen()
        assert film is not None
        frames_FHWC, receipt = self._frames(film, policy, shuffled)
        return frames_FHWC if receipt.image else self.model.shown(frames_FHWC)

    def pixels(self, handle: str) -> np.ndarray:
        """The frames behind the handle of a prompt, uint8 [F, H, W, 3]."""
        return self._frames(*self._live[handle])[0]

    def _handle(self, receipt: Receipt, film: str, policy: FramePolicy, shuffled: bool) -> str:
        handle = self._key(receipt)
        self._live[handle] = (film, policy, shuffled)
        return handle

    def _key(self, receipt: Receipt) -> str:
        if self.store is not None:
            return self.store.key(receipt)
        return f"{receipt.content}:{receipt.indices}:{receipt.width}x{receipt.height}{receipt.image:d}"

    def _receipt(self, film: str, policy: FramePolicy, shuffled: bool) -> Receipt:
        receipt = self.tier.receipt(*self._asked_for(film, policy))
        if not shuffled:
            return receipt
        order = _shuffle(receipt)
        return replace(
            receipt, indices=tuple(receipt.indices[i] for i in order), cut=f"{receipt.cut} frames shuffled".strip()
        )

    def _pixels(
        self, film: str, policy: FramePolicy, shuffled: bool, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """As `encode` takes them: those from `start` to `stop`, the others are not read."""
        frames_FHWC, receipt = self._frames(film, policy, shuffled, start, stop)
        return frames_FHWC[0] if receipt.image and self.model.stills else frames_FHWC

    def _frames(
        self, film: str, policy: FramePolicy, shuffled: bool, start: int = 0, stop: int | None = None
    ) -> tuple[np.ndarray, Receipt]:
        receipt = self.tier.receipt(*self._asked_for(film, policy))
        order = _shuffle(receipt) if shuffled else range(len(receipt.indices))
        return self.tier.take(*self._asked_for(film, policy), order[start:stop])

    def _asked_for(self, film: str, policy: FramePolicy) -> tuple[Path, FramePolicy, Fit, int]:
        return Path(film), self.settled(film, policy), self.model.fit, self.model.temporal_patch


def _shuffle(receipt: Receipt) -> list[int]:
    """An order of the frames that depends on the film alone; the times in the prompt stay in order."""
    rng = np.random.Generator(np.random.Philox(key=int(receipt.content[:16], 16)))
    order: list[int] = rng.permutation(len(receipt.indices)).tolist()
    return order
