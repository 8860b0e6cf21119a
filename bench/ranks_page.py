"""The tables of docs/ranks.md: what was measured (bench.ranks) and what the cost model says of many GPUs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from bench import demo
from bench.readme import filled
from longtake.maths.cost import Keep, Way, Work
from longtake.maths.cost_ranks import Links, Mesh, fewest, keep_on, layer_bytes, most_frames, predict_on, room_of_rank
from longtake.maths.devices import DEVICES, GB
from longtake.maths.room import USABLE
from longtake.maths.shapes import PRESETS
from longtake.maths.share import Share
from longtake.runtime import shared

PAGE = demo.RESULTS.parents[1] / "docs" / "ranks.md"
MODEL, PER_FRAME, ITEM = "qwen2.5-vl-7b", 70, 2
SHAPE, LINKS = PRESETS[MODEL], Links()
BY_HEADS = 4  # ranks among which the heads can be parted
FRAMES, WORLDS, CARDS, QUESTIONS = (3600, 28800), (8, 64), ("h100", "h200"), 64
WAYS = {
    "LoRA": (Way("exact", "layers", adapter="lora"), False),
    "aLoRA": (Way("alora", "nothing", adapter="alora", warm=False), False),
    "full": (Way("exact", "layers", adapter="full"), True),
}
PUBLISHED = ((30720, 200, 600, 4), (216000, 200, 600, 8))  # visual, text and answer tokens, ranks: 512 frames, an hour
ROOM = 2048  # tokens to which that pads prompts without their film, and again answers
Rows = list[list[str]]
SETTING = """\
{layers} layers, {dtype}, {group} answers of {answer} tokens. MB: the most that a rank held during the step ({held}),
above what it held before. Seconds: prefill, answers, backward and the sum of gradients, of the slowest rank{thread}.
{few}{busy}{on}, torch {torch}, transformers {transformers}, {date}."""
ASSUMED = """\
{model}: {shape.heads} heads, {shape.kv_heads} key heads, {kv:.1f} kB of keys and values a token; bfloat16 throughout,
moments too; {each} tokens a frame, {one.question} tokens of a prompt beside the film, {one.group} answers of
{one.answer} tokens, a LoRA of rank {rank}. A step asks {questions} questions, each about another film whose features
are at hand; under aLoRA prefixes are met for the first time. {near:.0f} GB/s between the {machine} GPUs of a machine,
{far:.0f} GB/s for each GPU between machines (what all need comes into a machine once, by all its cards together),
{host:.0f} GB of the host's memory for each rank. Nothing travels while something is computed. GPUs by
`src/longtake/maths/devices.py`: usual efficiencies, not measured."""


def work(frames: int) -> Work:
    """One question on a film."""
    return Work(frames, PER_FRAME * frames, 256)


def page(text: str, found: Mapping[str, Any]) -> str:
    """The page with its tables."""
    parts = {
        "exact": exact(found), "held": held(found), "padding": padding(found), "films": films(found),
        "setting": setting(found), "assumed": assumed(), "layer": layer(), "memory": memory(), "seconds": seconds(),
        "most": most(),
    }  # fmt: skip
    return filled(text, parts)


def table(head: Sequence[str], rows: Rows) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in [[*head], *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def _cases(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for world in found["worlds"]:
        yield from (one | {"ranks": world["ranks"]} for one in world["cases"])


def exact(found: Mapping[str, Any]) -> str:
    """Gradients and bytes, by network, prefix, ranks and way of attention; both ways to keep a prefix in a line."""
    rows: Rows = []
    order = sorted(
        (c for c in _cases(found) if c["ranks"] > 1), key=lambda c: (c["net"], c["tokens"], c["ranks"], c["asked"])
    )
    for key, group in groupby(order, key=lambda c: (c["net"], c["tokens"], c["ranks"], c["asked"], c["how"])):
        graph, again = sorted(group, key=lambda c: c["keep"])
        net, tokens, ranks, asked, how = key
        told = how if asked == how else f"{how}, for {asked}"
        worst = max(graph["difference"], again["difference"])
        cells = [_moved(graph, "forward", found), _moved(graph, "backward", found), _moved(again, "backward", found)]
        rows.append([net, f"{tokens:,}", str(ranks), told, f"{worst:.1e}", *cells])
    head = ("heads, key heads", "tokens", "ranks", "attention", "gradients differ by", "kB forward", "backward, graph")
    return table((*head, "backward, layers"), rows)


def _moved(case: Mapping[str, Any], way: str, found: Mapping[str, Any]) -> str:
    """kB of a layer that the first rank gave, and how many times what the formula says."""
    counted, said = sum(case[way].values()), sum(case["formula"][way].values())
    return f"{counted / found['layers'] / 1e3:,.0f} ({counted / said:.3f})"


def held(found: Mapping[str, Any]) -> str:
    """Memory and seconds of attention by gathered keys."""
    rows: Rows = []
    order = sorted(
        (c for c in _cases(found) if c["asked"] == "gather"), key=lambda c: (c["net"], c["tokens"], c["ranks"])
    )
    for (net, tokens, ranks), group in groupby(order, key=lambda c: (c["net"], c["tokens"], c["ranks"])):
        both = sorted(group, key=lambda c: c["keep"])
        rows.append([
            net, f"{tokens:,}", str(ranks), _each(both[0]["prefix"]), _each(both[0]["answers"]),
            *(f"{max(c['peak_mb']):,.0f} ({c['model_mb']:,.0f})" for c in both),
            *(f"{sum(c['seconds'].values()):.1f}" for c in both),
        ])  # fmt: skip
    head = ("heads, key heads", "tokens", "ranks", "prefix tokens of each", "answer tokens of each")
    return table((*head, "MB, graph", "MB, layers", "s, graph", "s, layers"), rows)


def _each(counts: Sequence[int]) -> str:
    """Numbers of all ranks; once where they are one."""
    return f"{counts[0]:,}" if len(set(counts)) == 1 else ", ".join(f"{count:,}" for count in counts)


def slicer(visual: int, text: int, answer: int, ranks: int) -> tuple[float, int]:
    """What the published slicer does to one row: tokens computed for each that is there, visual tokens left out.

    Long-RL's prepare_inputs_for_sp_mm pads every rank to the room for text and answer beside its visual part.
    """
    part = visual // ranks
    return ranks * (2 * ROOM + part) / (visual + text + answer), visual - ranks * part


def padding(found: Mapping[str, Any]) -> str:
    """Tokens computed for each token there is: counted here, by formula there."""
    rows: Rows = []
    many = {(c["tokens"], c["ranks"]): c for c in _cases(found) if c["ranks"] > 1 and c["asked"] == "gather"}
    for (tokens, ranks), case in sorted(many.items()):
        sent = sum(case["forward"].values()) + sum(case["backward"].values())
        ratio, lost = slicer(tokens - found["question"], found["question"], found["answer"], ranks)
        ours = sum(case["prefix"]) / tokens
        rows.append(
            [f"{tokens:,}", str(ranks), f"{ours:.3f}", f"{case['padding'] / sent:.2%}", f"{ratio:.2f}", str(lost)]
        )
    for visual, text, answer, ranks in PUBLISHED:
        ratio, lost = slicer(visual, text, answer, ranks)
        share = Share(visual + text, 0, ranks).counts
        width = f"{max(share) * ranks / sum(share) - 1:.2%}"
        rows.append(
            [f"{visual + text:,}", str(ranks), f"{sum(share) / (visual + text):.3f}", width, f"{ratio:.2f}", str(lost)]
        )
    head = ("prefix tokens", "ranks", "computed for each", "bytes that are padding")
    return table((*head, "published: computed for each", "published: tokens dropped"), rows)


def films(found: Mapping[str, Any]) -> str:
    """Frames through the tower."""
    rows = [
        [str(w["ranks"]), str(sum(w["films"]["films"])), str(sum(w["films"]["frames"])), _each(w["films"]["frames"]),
         f"{max(w['films']['read']) / w['films']['pixels']:.0%}", f"{sum(w['films']['moved']) / 1e3:.0f}"]
        for w in found["worlds"]
    ]  # fmt: skip
    head = ("ranks", "frames there are", "through the tower", "of each rank", "most that one reads")
    return table((*head, "kB gathered"), rows)


def setting(found: Mapping[str, Any]) -> str:
    """What was measured on what."""
    about, ran = found["machine"], found["versions"]
    few = about["processors"] < max(world["ranks"] for world in found["worlds"]) and not about["gpus"]
    words = SETTING.format(
        **{name: found[name] for name in ("layers", "dtype", "group", "answer", "date")}, **ran,
        on=" ".join(about["gpus"]) or f"{about['processors']} CPU cores",
        held="what torch allocated" if about["gpus"] else "resident set",
        busy=f"Other work ran beside it (load {found['load']}). " if found["load"] > 1 else "",
        thread="" if about["gpus"] else ", each on one thread",
        few="Where ranks are more than cores, seconds say nothing. " if few else "",
    )  # fmt: skip
    return textwrap.fill(words, 120, break_on_hyphens=False)


def assumed() -> str:
    """What the numbers below rest on."""
    one, host = work(1), DEVICES[CARDS[0]].host / GB
    words = ASSUMED.format(
        model=MODEL, shape=SHAPE, kv=SHAPE.kv * ITEM / 1e3, each=PER_FRAME, one=one, rank=WAYS["LoRA"][0].rank,
        questions=QUESTIONS, near=LINKS.near / GB, machine=LINKS.machine, far=LINKS.far / GB, host=host,
    )  # fmt: skip
    return textwrap.fill(words, 120, break_on_hyphens=False)


def layer() -> str:
    """Bytes of one layer of one prefix, all ranks of a world in one sequence."""
    rows: Rows = []
    for frames in FRAMES:
        for ranks in (BY_HEADS, *WORLDS):
            mesh, way, tokens = Mesh(ranks, ranks), WAYS["LoRA"][0], work(frames).prefix
            both = layer_bytes(SHAPE, tokens, way, mesh)
            cells = [f"{x / GB:.2f} ({1e3 * x / LINKS.gather(ranks):.1f})" for x in (both.forward, both.backward)]
            heads = "heads cannot be parted"
            if shared.fits(SHAPE.heads, SHAPE.kv_heads, ranks):
                more = layer_bytes(SHAPE, tokens, way, replace(mesh, by_heads=True))
                heads = f"{(more.forward - both.forward) / GB:.2f}, {(more.backward - both.backward) / GB:.2f}"
            rows.append([f"{frames:,}", f"{tokens:,}", str(ranks), *cells, heads])
    head = ("frames", "tokens", "ranks", "GB forward (ms)", "GB backward (ms)")
    return table((*head, "GB by heads besides"), rows)


def _chosen() -> Iterable[tuple[str, int, int, str, Way, Mesh, bool]]:
    """(card, ranks, frames, mode, way, mesh, whether it fits), as a run would choose."""
    for frames in FRAMES:
        for card in CARDS:
            for ranks in WORLDS:
                for mode, (way, in_shares) in WAYS.items():
                    device, mesh = DEVICES[card], Mesh(ranks, shares=in_shares)
                    found = fewest(SHAPE, work(frames), way, mesh, device.bytes, device.host)
                    mesh = found or replace(mesh, sequence=ranks)
                    keep: Keep = keep_on(SHAPE, work(frames), way, mesh, device.bytes, device.host)
                    yield card, ranks, frames, mode, replace(way, keep=keep), mesh, found is not None


def memory() -> str:
    """GB on each rank."""
    rows: Rows = []
    for card, ranks, frames, mode, way, mesh, inside in _chosen():
        need = room_of_rank(SHAPE, work(frames), way, mesh)
        numbers = (need.weights + need.learning, need.kv, need.kept, need.working, need.peak)
        name = f"{frames:,} on {ranks} × {DEVICES[card].name}"
        rows.append(
            [
                name,
                mode,
                str(mesh.sequence),
                way.keep,
                *(f"{x / GB:.1f}" for x in numbers),
                "yes" if inside else "**no**",
            ]
        )
    head = ("frames", "mode", "ranks a prefix", "kept", "weights, optimizer", "keys and values", "for the backward")
    return table((*head, "working set", "peak", "fits"), rows)


def seconds() -> str:
    """Of a film on its sequence, and of a step; what does not fit is left out."""
    rows: Rows = []
    for card, ranks, frames, mode, way, mesh, inside in _chosen():
        if inside:
            step = predict_on(SHAPE, work(frames), way, DEVICES[card].rates(ITEM), mesh, LINKS)
            film = step.film
            numbers = (
                film.encode,
                film.prefill,
                film.generate,
                film.answers,
                film.prefix_backward,
                step.keys + step.weights,
            )
            name = f"{frames:,} on {ranks} × {DEVICES[card].name}"
            whole = f"{step.seconds(QUESTIONS, mesh):,.0f}"
            rows.append([name, mode, str(mesh.sequence), *(f"{x:.1f}" for x in numbers), whole])
    head = ("frames", "mode", "ranks a prefix", "encode, once", "prefill", "generate", "answers", "prefix backward")
    return table((*head, "on the wires", f"a step of {QUESTIONS}"), rows)


def most() -> str:
    """The longest film; where keys and values alone fill what weights leave; tokens a frame for the longest to fit."""
    rows: Rows = []
    for card in CARDS:
        device = DEVICES[card]
        for mode, (way, in_shares) in WAYS.items():
            meshes = [Mesh(ranks, ranks, in_shares) for ranks in (1, *WORLDS)]
            kept: list[Keep] = ["layers", "host"] if way.through else ["nothing"]
            found = [
                max(most_frames(SHAPE, work(1), replace(way, keep=k), mesh, device.bytes, device.host) for k in kept)
                for mesh in meshes
            ]
            need = room_of_rank(SHAPE, work(FRAMES[-1]), way, meshes[-1])
            floor = (USABLE * device.bytes - need.weights - need.learning) / need.kv * FRAMES[-1]
            each = found[-1] * PER_FRAME / FRAMES[-1]
            rows.append([device.name, mode, *(f"{frames:,}" for frames in found), f"{floor:,.0f}", f"{each:.0f}"])
    head = ("GPU", "mode", "1 rank", *(f"{ranks} ranks" for ranks in WORLDS), "keys and values alone")
    return table((*head, f"tokens a frame for {FRAMES[-1]:,} on {WORLDS[-1]}"), rows)
