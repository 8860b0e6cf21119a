"""n ranks against one: the same gradients? What travels, what is computed and held. Into bench/results/ranks.json.

    python -m bench.ranks                    worlds of this machine, minutes: processors over gloo; where there are GPUs
                                             these over NCCL, into ranks_cuda.json
    python -m bench.ranks --tiny --out FILE  the same in seconds, to see that all of it runs
    python -m bench.ranks --page             docs/ranks.md from the numbers there are
    torchrun --nproc-per-node 8 --nnodes 2 … -m bench.ranks --world FOLDER     one world, on several machines (after
                                             `python -m bench.ranks --world FOLDER`: one rank's gradients are there)

On processors: decoders of Qwen2.5-VL's kind with seven query heads to a key head and random weights, in float64, all of
which learns. On GPUs: its 7B shape in bfloat16 with a LoRA. One film, G answers.

A row of a world: net (heads and key heads), tokens (of the prefix), keep, asked (`--ranks.attention`) and how (what it
came to); difference (of gradients to those of one rank, relative to the largest); prefix, answers (tokens of each
rank); forward, backward (bytes that the first rank gave on the way through the prefix: "rows" keys and values, "home"
their gradients, "swap" queries and outputs by heads), sum (gradients), padding (bytes of these), formula (what forward
and backward should be); peak_mb (of each rank, above what it held: resident set, on a GPU what torch allocated) and
model_mb (the same by maths.cost_ranks); seconds by phase, of the slowest rank.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import demo, ranks_page, ranks_world
from longtake.log import read_json, write_json_atomic
from longtake.log.folder import machine, versions

RESULT, OVER_NCCL = demo.RESULTS / "ranks.json", demo.RESULTS / "ranks_cuda.json"
OUT = Path("out/ranks")


def measured(folder: Path, *, tiny: bool) -> dict[str, Any]:
    """All worlds of this machine, one after another, each in processes of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.pt"), *folder.glob("*.json")):
        old.unlink()
    how, words = ranks_world.plan(tiny=tiny), ["-m", "bench.ranks", "--world", str(folder), *["--tiny"] * tiny]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    load = round(os.getloadavg()[0], 1)
    if how.device == "cpu":
        sys.stdout.write(ranks_world.wanted())
    for size in how.worlds:
        subprocess.run([sys.executable, *([*torchrun, str(size)] if size > 1 else []), *words], check=True)
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": load,  # of the machine before it began
        "dtype": str(how.dtype).removeprefix("torch."),
        **{name: getattr(how.films[0][0], name) for name in ("layers", "question", "group", "answer")},
        "worlds": [read_json(folder / f"{size}.json") for size in how.worlds],
    }


def main(words: Sequence[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small: to see that it runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--world", type=Path, metavar="FOLDER", help="one world: of this process, or under torchrun")
    parser.add_argument("--page", action="store_true", help="write the page and end")
    chosen = parser.parse_args(words)
    if chosen.tiny and not chosen.out and not chosen.world:
        parser.error("--tiny measures nothing: name another file with --out")
    if chosen.world:
        chosen.world.mkdir(parents=True, exist_ok=True)
        made = ranks_world.one_world(chosen.world, tiny=chosen.tiny)
        if made is not None:
            write_json_atomic(chosen.world / f"{made['ranks']}.json", made)
        return 0
    out = chosen.out or (OVER_NCCL if ranks_world.plan(tiny=chosen.tiny).device == "cuda" else RESULT)
    if not chosen.page:
        write_json_atomic(out, measured(OUT, tiny=chosen.tiny))
    if chosen.page or out == RESULT:
        ranks_page.PAGE.write_text(ranks_page.page(ranks_page.PAGE.read_text(), read_json(RESULT)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
