"""One world of `bench.ranks`: what n ranks compute, send and hold, against one rank's gradients.

U prefix tokens, G answers, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cpu_worker import MIB, RESET, memory
from bench.h200_net import SEVEN, Clock, Net, Scene, Size, network, scene
from longtake.cli.environment import launched
from longtake.maths.algorithms import ALGORITHMS
from longtake.maths.cost import Way, Work
from longtake.maths.cost_ranks import Mesh, room_of_rank
from longtake.maths.devices import GB
from longtake.maths.pack import answer_rows, stem
from longtake.maths.room import USABLE, room
from longtake.maths.shapes import PRESETS, Shape
from longtake.models.qwen3_vl import Qwen3VL
from longtake.parallel import ranks
from longtake.parallel.axis import ALONE, Axis, Traffic
from longtake.parallel.ranks import How, Ranks
from longtake.runtime.encode import Request
from longtake.runtime.features import FeatureStore, prepare
from longtake.runtime.prefix import Keep
from longtake.runtime.rows import compute
from longtake.runtime.shared import Shared, fits
from longtake.sim import tiny as stand_in
from longtake.train.step import Objective, Passes, add_gradients, backward

GOAL = Objective(ALGORITHMS["longtake"].loss, on_policy=True)
FILMS = (64, 18, 2, 30)  # frames
PIXELS = 32  # across and down
WAYS: tuple[tuple[Keep, How], ...] = (
    ("graph", "gather"), ("layers", "gather"), ("graph", "ulysses"), ("layers", "ulysses"),
)  # fmt: skip
GPUS, CORES = (1, 2, 4, 8), (1, 2, 4)  # ranks of the worlds that are measured
GPU_FRAMES = (64, 128)  # of films for the 7B shape
MMAP_THRESHOLD = -3  # of glibc's mallopt


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run where. Example: plan(tiny=True).worlds == (1, 2, 4)."""

    device: str
    dtype: torch.dtype
    adapter: bool  # a LoRA learns; else all weights
    films: tuple[tuple[Size, tuple[int, ...]], ...]  # frames that each network is shown
    worlds: tuple[int, ...]


def plan(*, tiny: bool) -> Plan:
    """For this machine."""
    if torch.cuda.is_available() and not tiny:
        worlds = tuple(size for size in GPUS if size <= torch.cuda.device_count())
        return Plan("cuda", torch.bfloat16, True, ((SEVEN, GPU_FRAMES),), worlds)
    films = (_heads(28, 4, 768), (62,)), (_heads(14, 2, 384), (62, 254))
    if tiny:
        films = tuple((replace(size, layers=2, inner=32, answer=5, group=3), (2,)) for size, _ in films)
    return Plan("cpu", torch.float64, False, films, CORES)


def wanted() -> str:
    """What the same needs on GPUs, by the cost model."""
    longest, shape = SEVEN.tokens(GPU_FRAMES[-1]), PRESETS[SEVEN.family]
    work = Work(GPU_FRAMES[-1], longest - SEVEN.question, SEVEN.question, group=SEVEN.group, answer=SEVEN.answer)
    need = room(shape, work, Way("exact", "graph", adapter="lora")).peak / USABLE
    return f"no GPU here: processors over gloo. Over NCCL it takes two GPUs or more, of {need / GB:.0f} GB each\n"


def _heads(heads: int, kv_heads: int, inner: int) -> Size:
    return Size(f"{heads} and {kv_heads}", 3, 8 * heads, heads, kv_heads, inner, 300, (7, 9), 68, 64, 8)


def one_world(folder: Path, *, tiny: bool) -> dict[str, Any] | None:
    """This process's part of a world that torchrun started, or all of it; the first rank gets what was measured.

    The world of one rank leaves its gradients in `folder`; the others read them.
    """
    told, how, world = launched(), plan(tiny=tiny), ALONE
    if told is not None:
        ranks.join(ranks.meet(), told.rank, told.size)
        world = ranks.here()
    if how.device == "cpu":
        _returned()
        torch.set_num_threads(1)
    made = {"ranks": world.size, "films": encoded(world), "cases": list(cases(world, how, folder))}
    ranks.leave()
    return made if world.leads else None


def cases(world: Axis, how: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every network, prefix and way; on one rank attention goes one way."""
    for size, shown in how.films:
        net = built(size, how)
        for frames in shown:
            here, known = scene(net, size, frames), folder / f"{size.heads}-{frames}.pt"
            for keep, asked in WAYS:
                if world.size > 1 or asked == "gather":
                    yield case(here, size, world, keep, asked, known)


def built(size: Size, how: Plan) -> Net:
    """In float64 with norms in float64: transformers' own round to float32 on their way."""
    net = network(size, how.device, how.dtype, adapter=how.adapter)
    norms = [
        (parent, name, norm)
        for parent in net.text.modules()
        for name, norm in parent.named_children()
        if "RMSNorm" in type(norm).__name__
    ]
    for parent, name, norm in norms if how.dtype == torch.float64 else ():
        exact = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
        exact.weight = norm.weight
        setattr(parent, name, exact)
    return net


def case(here: Scene, size: Size, world: Axis, keep: Keep, asked: How, known: Path) -> dict[str, Any]:
    """One step but for the optimizer. `known`: one rank's gradients, written if they are not there."""
    net, row, over = here.net, here.row, Ranks(sequence=world, how=asked)
    clock, through = Clock(net.device), list[int]()

    def features(handles: Any) -> list[Any]:
        return [here.features for _ in handles]

    hook = net.layers[0].register_forward_pre_hook(lambda _, args: through.append(args[0].shape[1]))
    world.wait()
    taken(world.traffic)
    before = _held(net.device)
    with clock("prefill"):
        made = compute(net, stem(row), features, keep, over)
    hook.remove()
    forward = taken(world.traffic)
    with clock("learn"):
        backward(net, features, row, GOAL, Passes(keep), made, ranks=over)
    back = taken(world.traffic)
    with clock("sum"):
        add_gradients(here.learned, world)
    summed = taken(world.traffic)
    peak = round(_peak(net.device) - before, 1)
    found = {name: p.grad.cpu() for name, p in net.text.named_parameters() if p.grad is not None}
    here.optimizer.zero_grad(set_to_none=True)
    if not known.exists():
        torch.save(found, known)
    dealt = answer_rows(row, Passes().answer_tokens, dealt=(world.index, world.size))
    each = world.gather((sum(through), sum(len(part.ids_A) for part in dealt), peak, clock.seconds))
    by_heads = asked == "ulysses" and fits(size.heads, size.kv_heads, world.size)
    tokens = row.layout.stem.total
    return {
        "net": size.family,
        "tokens": tokens,
        "keep": keep,
        "asked": asked,
        "how": "" if not isinstance(made.over, Shared) else "ulysses" if by_heads else "gather",
        "difference": difference(found, torch.load(known)),
        "prefix": [one[0] for one in each],
        "answers": [one[1] for one in each],
        "forward": forward.bytes,
        "backward": back.bytes,
        "sum": summed.bytes.get("sum", 0),
        "padding": forward.padding + back.padding,
        "formula": formula(size, tokens, world.size, keep, by_heads, net.text.dtype),
        "peak_mb": [one[2] for one in each],
        "model_mb": modelled(size, tokens, keep, world.size, net),
        "seconds": {phase: round(max(one[3][phase] for one in each), 3) for phase in clock.seconds},
    }


def formula(
    size: Size, tokens: int, over: int, keep: Keep, by_heads: bool, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Bytes that a rank gives, without padding and the last state of a prompt that its answers begin with.

    Forward: keys and values of its tokens. Backward: gradients of all of them, in float32 at least. By heads also
    queries and outputs of its tokens in every layer but the last, as often backward, and once more where layers are
    computed again.
    """
    if over == 1:
        return {"forward": {}, "backward": {}}
    head, wide = size.width // size.heads, torch.promote_types(dtype, torch.float32)
    keys = size.layers * 2 * size.kv_heads * head * tokens
    forward, backward = {"rows": keys / over * dtype.itemsize}, {"home": float(keys * wide.itemsize)}
    if by_heads:
        asked = (size.layers - 1) * 2 * size.heads * head * tokens / over * dtype.itemsize
        forward |= {"swap": asked}
        backward |= {"swap": asked * (1 if keep == "graph" else 2)}
    return {"forward": forward, "backward": backward}


def modelled(size: Size, tokens: int, keep: Keep, over: int, net: Net) -> float:
    """What `peak_mb` is by the cost model: all that is held, but for weights and the optimizer's two moments."""
    head = size.width // size.heads
    shape = Shape(size.layers, size.width, size.heads, size.kv_heads, head, size.inner, size.vocab, tied=False)
    work = Work(1, tokens - size.question, size.question, group=size.group, answer=size.answer - 1)
    way = Way("exact", keep, adapter="full" if net.adapter is None else "lora", item=net.text.dtype.itemsize)
    need = room_of_rank(shape, work, way, Mesh(over, over))
    return round((need.peak - need.weights - need.learning * 2 / 3) / MIB**2, 1)


def difference(found: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    """The largest, relative to the largest gradient."""
    assert found.keys() == want.keys()
    most = max(float(x.abs().max()) for x in want.values())
    return max(float((found[name] - x).abs().max()) for name, x in want.items()) / most


def encoded(world: Axis) -> dict[str, Any]:
    """Films through a vision tower: frames that each rank sent through it, bytes of film that each read and of what the
    tower made that each gave.
    """
    words, draw = stand_in.tokenizer(), np.random.default_rng(0)
    model = Qwen3VL(stand_in.network(words, 0), words, stand_in.PROCESSOR)
    shown = [draw.integers(0, 256, (frames, PIXELS, PIXELS, 3), dtype=np.uint8) for frames in FILMS]
    read: list[int] = []

    def request(film: np.ndarray) -> Request:
        def frames(start: int = 0, stop: int | None = None) -> np.ndarray:
            read.append(film[start:stop].nbytes)
            return film[start:stop]

        return Request(str(len(film)), film[..., 0].size, frames, film.shape)

    store = FeatureStore(None, "bench", torch.float32)
    prepare(store, model, [request(film) for film in shown], axis=world)
    each = world.gather((store.frames, sum(read), taken(world.traffic).bytes.get("rows", 0)))
    return {
        "films": list(FILMS),
        "pixels": sum(film.nbytes for film in shown),
        "frames": [one[0] for one in each],
        "read": [one[1] for one in each],
        "moved": [one[2] for one in each],
    }


def _returned() -> None:
    """What is freed goes back to the system at once, whatever was freed before: peaks then tell what was held."""
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)


def taken(traffic: Traffic) -> Traffic:
    """What was sent since the last time."""
    found = replace(traffic, calls=dict(traffic.calls), bytes=dict(traffic.bytes))
    traffic.calls.clear()
    traffic.bytes.clear()
    traffic.padding = 0
    return found


def _held(device: torch.device) -> float:
    """MB now; the mark of the largest begins anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MIB**2
    Path("/proc/self/clear_refs").write_text(RESET)
    return memory("VmRSS") / MIB


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / MIB**2 if device.type == "cuda" else memory("VmHWM") / MIB
