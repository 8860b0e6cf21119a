"""Four kinds of small stories whose questions need the whole film, with exact answers, all from a seed.

A film lasts 8 seconds at 16 frames a second. In each second from 1 to 7 at most one event happens; it is visible for a
few frames only. Second 0 is an introduction. Words are single tokens of the demo's tokenizer (sim.tiny).

    spatial   a ball hides under one of three cups, the cups are swapped: where is it at the end?
    temporal  a screen flashes in colours: which flash was number k? how many were there?
    goal      a guard must visit four rooms: which one is he heading for?
    plot      three friends hand things over: who last gave the gem to bob?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FPS, SECONDS, SIZE = 16, 8, 64
KINDS = ("spatial", "temporal", "goal", "plot")
PLACES, COLOURS = ("left", "middle", "right"), ("red", "green", "blue", "yellow")
FRIENDS, THINGS, NOBODY = ("ann", "bob", "cid"), ("gem", "apple"), "nobody"
SWAPS = ("swap-lm", "swap-mr", "swap-lr")
SWAPPED = {"swap-lm": (0, 1), "swap-mr": (1, 2), "swap-lr": (0, 2)}
GIFTS = tuple(f"{a}>{b}:{thing}" for a in FRIENDS for b in FRIENDS if a != b for thing in THINGS)
LETTERS = "ABCD"
SLOW, FAST = (5, 8), (2, 4)  # frames an event stays visible: [low, high)
INTRODUCED = 3, 11  # first frame of the introduction, and for how many it stays
FAST_SHARE = 0.18  # films whose events last 2-3 frames: why 64 frames beat 32


@dataclass(frozen=True, slots=True)
class Scene:
    """One film's story. Example: Scene("spatial", ("left", "swap-lm", …), "where is …", ("left", …), "middle", …)."""

    kind: str
    events: tuple[str, ...]  # [SECONDS] what happens in each second, "none" if nothing; [0] is the introduction
    question: str
    options: tuple[str, ...]  # shuffled
    truth: str  # one of options
    conclusions: tuple[str, ...]  # [SECONDS] the running conclusion after each second
    visible: int  # frames an event stays visible
    first: tuple[int, ...]  # [SECONDS] first visible frame, counted within the second
    look: int  # seed of background, jitter and distractors

    @property
    def letter(self) -> str:
        return LETTERS[self.options.index(self.truth)]

    @property
    def hops(self) -> int:
        """Events that the answer rests on."""
        if self.kind == "temporal" and self.truth in COLOURS:
            return int(self.question.split()[4])
        return sum(e != "none" for e in self.events[1:])

    def shown(self, second: int) -> range:
        """Frames of the film in which the event of a second is to be seen; none if nothing happens."""
        if self.events[second] == "none":
            return range(0)
        first, visible = (self.first[second], self.visible) if second else INTRODUCED
        return range(second * FPS + first, second * FPS + first + visible)

    @property
    def evidence(self) -> tuple[tuple[float, float], ...]:
        """Seconds (start, stop) in which something that matters is to be seen."""
        spans = [self.shown(second) for second in range(1, SECONDS)]
        return tuple((span.start / FPS, span.stop / FPS) for span in spans if span)


def track(kind: str, question: str, events: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The running conclusion after every second and the final answer, for events as seen (or as missed: "none")."""
    return {"spatial": _track_ball, "temporal": _track_flashes, "goal": _track_guard, "plot": _track_gift}[kind](
        question, events
    )


def _track_ball(question: str, events: Sequence[str]) -> tuple[tuple[str, ...], str]:
    place = PLACES.index(events[0])
    notes = [events[0]]
    for event in events[1:]:
        if event != "none" and place in SWAPPED[event]:
            place = sum(SWAPPED[event]) - place
        notes.append(PLACES[place])
    return tuple(notes), notes[-1]


def _track_flashes(question: str, events: Sequence[str]) -> tuple[tuple[str, ...], str]:
    words = question.split()
    wanted = int(words[4]) if words[0] == "which" else 99
    count, notes = 0, ["0"]
    for event in events[1:]:
        count += event != "none"
        latched = notes[-1] in COLOURS
        notes.append(notes[-1] if latched else event if count == wanted and event != "none" else str(count))
    return tuple(notes), notes[-1]


def _track_guard(question: str, events: Sequence[str]) -> tuple[tuple[str, ...], str]:
    seen: set[str] = set()
    notes = ["start"]
    for event in events[1:]:
        notes.append("same" if event == "none" else "old" if event in seen else "new")
        seen |= {event} - {"none"}
    left = [colour for colour in COLOURS if colour not in seen]
    return tuple(notes), left[0] if len(left) == 1 else ""


def _track_gift(question: str, events: Sequence[str]) -> tuple[tuple[str, ...], str]:
    words = question.split()
    thing, receiver = words[4], words[6]
    notes = [NOBODY]
    for event in events[1:]:
        giver, _, rest = event.partition(">")
        notes.append(giver if rest == f"{receiver}:{thing}" else notes[-1])
    return tuple(notes), notes[-1]


def _spatial(rng: np.random.Generator) -> tuple[str, list[str], tuple[str, ...]]:
    events = [str(rng.choice(PLACES))]
    events += [str(rng.choice(SWAPS)) if rng.random() < 0.85 else "none" for _ in range(1, SECONDS)]
    return "where is the ball at the end ?", events, PLACES


def _temporal(rng: np.random.Generator) -> tuple[str, list[str], tuple[str, ...]]:
    count = int(rng.integers(4, SECONDS))  # 4..7, uniform: no number is a better guess than another
    events = _placed(rng, [str(rng.choice(COLOURS)) for _ in range(count)])
    if rng.random() < 0.3:
        return "how many flashes were there ?", events, tuple(str(n) for n in range(4, SECONDS))
    return f"which flash was number {rng.integers(1, count + 1)} ?", events, COLOURS


def _goal(rng: np.random.Generator) -> tuple[str, list[str], tuple[str, ...]]:
    order = [str(c) for c in rng.permutation(COLOURS)]
    again = [order[1 + rng.integers(3)] for _ in range(rng.integers(0, SECONDS - 3))]
    visits = [str(c) for c in rng.permutation(order[1:] + again)]
    return "which room is the guard heading for ?", _placed(rng, visits), COLOURS


def _plot(rng: np.random.Generator) -> tuple[str, list[str], tuple[str, ...]]:
    receiver, thing = str(rng.choice(FRIENDS)), str(rng.choice(THINGS))
    options = (*(f for f in FRIENDS if f != receiver), NOBODY)
    question, wanted = f"who last gave the {thing} to {receiver} ?", str(rng.choice(options))
    while True:  # every option is right equally often
        events = _placed(rng, [str(rng.choice(GIFTS)) for _ in range(rng.integers(3, 6))])
        if _track_gift(question, events)[1] == wanted:
            return question, events, options


def _placed(rng: np.random.Generator, happenings: list[str]) -> list[str]:
    """Happenings in order, in random seconds from 1 on."""
    events = ["none"] * SECONDS
    for second, event in zip(
        sorted(rng.choice(np.arange(1, SECONDS), len(happenings), replace=False)), happenings, strict=True
    ):
        events[second] = event
    return events


def scene(kind: str, rng: np.random.Generator) -> Scene:
    """Draws one story. The same generator state gives the same scene."""
    question, events, options = {"spatial": _spatial, "temporal": _temporal, "goal": _goal, "plot": _plot}[kind](rng)
    conclusions, truth = track(kind, question, events)
    visible = int(rng.integers(*(FAST if rng.random() < FAST_SHARE else SLOW)))
    first = tuple(int(v) for v in rng.integers(0, FPS - visible + 1, SECONDS))
    shuffled = tuple(str(o) for o in rng.permutation(options))
    return Scene(
        kind, tuple(events), question, shuffled, truth, conclusions, visible, first, int(rng.integers(1 << 31))
    )


def keyed(*key: int) -> np.random.Generator:
    """Randomness that depends on the key alone: (seed, split, index, …)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
