"""What longtake passes around: one frozen record per stage of life. No dict crosses a file.

F frames, P prefix tokens, R answer tokens, G answers, N questions, T packed tokens, E model width, L feature levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


Pick = Literal["bins", "keyframes"]


@dataclass(frozen=True, slots=True)
class FramePolicy:
    """Which frames of a film are looked at, and how large. Exactly one of `frames`, `fps`, `seconds` is set.

    Example: FramePolicy(frames=64); FramePolicy(fps=1.0, max_frames=512); FramePolicy(seconds=(0.5, 3.0)).
    """

    frames: int | None = None  # centres of this many equal bins of the window
    fps: float | None = None  # that many bins a second, at most max_frames
    max_frames: int | None = None
    seconds: tuple[float, ...] | None = None  # explicit times
    start: float = 0.0  # window, seconds; end None = end of film
    end: float | None = None
    max_pixels: int | None = None  # per frame, beside the model's own limit
    image: bool = False  # a picture, shown as the family shows pictures: no times, limits of its own
    pick: Pick | None = None  # of each bin: its centre, or the key frame next to it; None = as the run says, else bins
    budget: int | None = None  # visual tokens at most; Films.settled makes max_frames of it


@dataclass(frozen=True, slots=True)
class Film:
    """What a container says of itself. Example: Film("a.mp4", "9f…", 128, 16.0, 8.0, 64, 64, "h264")."""

    path: str
    content: str  # BLAKE2b of the bytes, hex
    frames: int
    fps: float
    duration: float  # seconds
    width: int
    height: int
    codec: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the model saw of one film; every answer, training row and benchmark number carries one.

    Example: Receipt("a.mp4", "9f…", (1, 3), (0.06, 0.19), 32, 32, "pyav 18.1.0", 0, 1, "").
    """

    path: str
    content: str
    indices: tuple[int, ...]  # [F] frame numbers in the film, padding included
    seconds: tuple[float, ...]  # [F] presentation time of each
    width: int  # pixels given to the model
    height: int
    backend: str  # decoder and version
    padded: int  # frames repeated at the end to fill a temporal patch
    tokens: int  # visual tokens they became (0 before a model counted them)
    cut: str  # what was left out and why, "" if nothing: "capped at 64 of 128 frames asked for"
    image: bool = False  # it was one picture, and the model was shown a picture, no film
    subtitles: int = 0  # lines of them that stood before the question


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle. Example: Cue(12.3, 14.0, "Where is the ball?")."""

    start: float  # seconds
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question about at most one film or picture, with what is known about the truth.

    Example: Question("cups-7", "films/7.mp4", "Where is the ball now?", ("left", "middle", "right"), "B", "spatial").
    """

    id: str
    video: str | None
    text: str  # as the model reads it, options included
    options: tuple[str, ...] = ()  # without letters; () = open question
    answer: str = ""  # letter for multiple choice, else the text
    kind: str = ""
    hops: int = 0  # reasoning steps that the answer needs; 0 = unknown
    evidence: tuple[tuple[float, float], ...] = ()  # seconds (start, stop)
    policy: FramePolicy | None = None  # the row's own window or frame rate, if it names one
    subtitles: tuple[Cue, ...] = ()  # of the film; data.subtitles says which are read
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # the JSON row, for users' rewards


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of answer text and the weight of its tokens in the loss (0 = read, not learned).

    In a conversation of several turns, one of role "user" is a later user turn, read between two answers.
    Example: (Span("Left."), Span("And then?", 0.0, "user"), Span("Right.")).
    """

    text: str
    weight: float = 1.0
    role: Literal["assistant", "user"] = "assistant"


@dataclass(frozen=True, slots=True)
class Example:
    """A question with the answers to learn from; they share one prefix.

    Example: Example(question, ((Span("<think> s0 a </think> <answer> A </answer>"),),)).
    """

    question: Question
    targets: tuple[tuple[Span, ...], ...]  # [G] answers, each in spans


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, the better first; several pairs may ask the same question.

    Example: Pair("cups-7#0", question, "In the left cup.", "In the right cup.", 2.0, (4.0, 2.0), "judge").
    """

    id: str
    question: Question
    chosen: str
    rejected: str
    margin: float | None = None  # how much better; None = nobody said
    scores: tuple[float, float] | None = None  # of chosen and rejected
    source: str = ""  # whose preference: "judge", "human", …
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # the JSON row


@dataclass(frozen=True, slots=True)
class Features:
    """What a vision tower made of one set of frames: the merged tokens, then any DeepStack levels."""

    level_LNE: Tensor  # [1 + DeepStack levels, visual tokens, E]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One canonical token sequence, for engine and trainer alike.

    Example: Prompt("cups-7", (1, 5, 5, 9), ((1, 3),), position_3P, "f3…", receipt).
    """

    id: str  # question id
    ids: tuple[int, ...]  # [P]
    visual: tuple[tuple[int, int], ...]  # (start, stop) of each run of visual tokens
    position_3P: Tensor  # int64, M-RoPE rows (time, height, width); answers go on at max + 1
    features: str | None  # handle, see runtime.features; None = no video
    receipt: Receipt | None

    @property
    def prefix(self) -> str:
        """Names what it shares with others: its features, or itself where it has none."""
        return self.features or self.id


@dataclass(frozen=True, slots=True)
class Draw:
    """How one answer is sampled: all its randomness comes from `seed`. temperature 0 = greedy."""

    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer. Example: Answer((7, 2), (-0.1, -0.3), "B", "stop", 11, "sft-400")."""

    ids: tuple[int, ...]  # [R] end token included when finish == "stop"
    logprob: tuple[float, ...]  # [R] under the distribution it was sampled from (greedy: temperature 1)
    text: str
    finish: str  # "stop" | "length"
    seed: int
    weights: str  # version of the weights that sampled it
    correction: float = 1.0  # importance weight of an answer from another process, then `logprob` is the trainer's
    told: int = 0  # tokens, where an endpoint counts them and names none


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its answers. Example: Group(prompt, (answer, …))."""

    prompt: Prompt
    answers: tuple[Answer, ...]  # [G]


Node = tuple[int, tuple["int | Node", ...]]  # an inner segment's length, and what continues it: answers (int) or more


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a row's tokens; its descendants follow it, up to `stop`. Example: Segment(5, 2, False, 7)."""

    start: int
    length: int
    inner: bool  # a prefix that others continue; else an answer
    stop: int  # end of its last descendant, its own end if it has none


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the segments of a packed shared-prefix row lie. Plain ints; see maths.pack and maths.attention.

    Depth first: a segment's own tokens, then what continues it, in order. A token reads its own segment up to itself
    and all segments that its own continues.
    Example: Layout(groups=((5, (2, 3)), (4, (1,)))) is a row of 5+2+3+4+1 = 15 tokens, two prefixes with answers;
    Layout(((90, ((7, (2, 3)), (5, (4,)))),)) is a video of 90 tokens, two questions on it, and their answers.
    """

    groups: tuple[Node, ...]

    @property
    def total(self) -> int:
        return sum(_total(node) for node in self.groups)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All of them in row order."""
        found: list[Segment] = []
        at = 0
        for node in self.groups:
            at = _walk(node, at, found)
        return tuple(found)

    @property
    def stem(self) -> Layout:
        """The inner segments alone: what is computed once, whatever the answers."""
        return Layout(tuple(_stem(node) for node in self.groups))


def _total(node: int | Node) -> int:
    return node if isinstance(node, int) else node[0] + sum(map(_total, node[1]))


def _stem(node: Node) -> Node:
    return node[0], tuple(_stem(child) for child in node[1] if not isinstance(child, int))


def _walk(node: int | Node, at: int, found: list[Segment]) -> int:
    """Adds a node's segments in row order; returns where they end."""
    length, children = (node, ()) if isinstance(node, int) else node
    place = len(found)
    stop = at + length
    found.append(Segment(at, length, not isinstance(node, int), stop))
    for child in children:
        stop = _walk(child, stop, found)
    found[place] = Segment(at, length, not isinstance(node, int), stop)
    return stop


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """A packed row for training: groups behind one another, numbers for every answer token.

    Hidden state at predict_R[i] predicts token target_R[i]; weight_R multiplies its loss (the algorithm's advantage or
    the row's weight), old_logprob_R is its log-probability when sampled (zeros where there is none).
    """

    layout: Layout
    ids_T: Tensor  # int64
    position_3T: Tensor  # int64
    visual_T: Tensor  # bool, places that features fill, in row order
    features: tuple[str | None, ...]  # handles in row order; questions on one film share theirs
    predict_R: Tensor  # int64 places in the row
    target_R: Tensor  # int64 token ids
    weight_R: Tensor  # float
    old_logprob_R: Tensor  # float
    answer_R: Tensor  # int64, which answer of the row a token belongs to (for sequence-level ratios)


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Some answers of a PrefixRow without its prefixes, for scoring on keys and values that are kept (runtime.prefix).

    `source_R` says where the hidden state lies that predicts target_R[i]: below S, at the end of inner segment
    source_R[i] of the S there are; from S on, at the place source_R[i] - S of this row's A tokens.
    """

    layout: Layout  # the row's inner segments, and these answers of it
    ids_A: Tensor  # int64
    position_3A: Tensor  # int64
    source_R: Tensor  # int64
    target_R: Tensor  # int64
    weight_R: Tensor  # float
    old_logprob_R: Tensor  # float
    answer_R: Tensor  # int64, as in the PrefixRow
