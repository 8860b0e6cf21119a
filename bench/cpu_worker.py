"""One mode of the CPU benchmark in a process of its own: a line on stdin is a step, its numbers come back on stdout.

    python -m bench.cpu_worker out/bench/cpu exact 128 8 64

Peak memory is the process's resident set at its largest during the first step, less what it was once the network was
loaded: features, keys and values, activations, gradients and the optimizer's state are in it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.cpu_world import World

RESET = "5"  # of /proc/self/clear_refs: the high-water mark begins anew
STATUS = Path("/proc/self/status")
MIB = 1024  # kB


def memory(name: str) -> int:
    """kB of "VmRSS" or "VmHWM"."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None, "Linux has it"
    return int(found[1])


OURS = ("exact", "exact_layers", "no_prefix_gradient", "alora")
PEERS = ("per_answer", "per_answer_3pass", "encode_once", "prefix_grouper")
MODES = ("trl", *PEERS, *OURS)
SAME = (*PEERS, "exact", "exact_layers")  # the same gradient in exact arithmetic
More = Callable[[], bool]  # is another step wanted?
Tell = Callable[[dict[str, Any]], None]  # its numbers


def opened(world: World, mode: str, frames: int, group: int, answer: int) -> Callable[[More, Tell], None]:
    """Loads the network; what is returned makes steps as long as it is asked to."""
    import bench.cpu_torchvision  # noqa: F401  # before transformers meets torchvision

    if mode == "trl":
        from bench.cpu_trl import trainer

        return trainer(world, frames, group, answer)
    from bench import cpu_ours, cpu_peers
    from bench.cpu_scene import Clock, opened

    scene = opened(world, frames, group, answer, adapter=mode == "alora")
    ways = {name: getattr(part, name) for part, names in ((cpu_ours, OURS), (cpu_peers, PEERS)) for name in names}

    def serve(more: More, tell: Tell) -> None:
        with tempfile.TemporaryDirectory(dir=world.folder) as room:
            while more():
                touch = Clock()
                with scene.touched(Path(room), touch):
                    took = ways[mode](scene)
                tell({"phases": touch.seconds | took.phases, "update_s": took.update, "norm": took.norm})

    return serve


def main(words: Sequence[str]) -> int:
    """Exit code."""
    folder, mode, *sizes = words
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print does not belong to the answers
    serve = opened(World(Path(folder)), mode, *map(int, sizes))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text(RESET)
    peaks: list[int] = []

    def say(found: dict[str, Any]) -> None:
        told.write(json.dumps(found) + "\n")
        told.flush()

    def tell(found: dict[str, Any]) -> None:
        peaks.append(memory("VmHWM") - before)
        say(found | {"peak_mb": round(peaks[0] / MIB, 1)})

    say({"loaded_mb": round(before / MIB, 1)})
    serve(lambda: bool(sys.stdin.readline()), tell)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
