"""`longtake doctor`: does this computer have what a run needs? Every ✗ comes with one command that mends it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from longtake.config import Settings
from longtake.log import Log
from longtake.log.folder import machine

NEEDED = {"torch": (2, 13), "transformers": (5, 17), "av": (15, 0)}  # the same floors as pyproject.toml
INSTALL = "pip install -e '.[train]'"
FREE_GIB = 1.0  # the demo writes a tenth of it
MEMORY_GIB = 2.0


class Config(Settings):
    """What to check."""

    out: Path = Field(Path("."), description="folder whose disk is checked")


@dataclass(frozen=True, slots=True)
class Check:
    """One line. Example: Check("torch", True, "2.13.0", "", essential=True)."""

    name: str
    ok: bool
    found: str
    fix: str  # a command; "" when ok
    essential: bool = True  # without it nothing trains


def run(config: Config, log: Log) -> dict[str, Any]:
    """All checks; "ok" is False (and the exit code 1) if an essential one fails."""
    checks = [python(), *(package(name, floor) for name, floor in NEEDED.items())]
    checks += [processor(), guarded("film", film, INSTALL), disk(config.out), memory()]
    for check in checks:
        log.say(
            f"{'✓' if check.ok else '✗'} {check.name:<13} {check.found}"
            + (f"\n    do: {check.fix}" if check.fix else "")
        )
    return {"ok": all(check.ok for check in checks if check.essential), "checks": [asdict(check) for check in checks]}


def python() -> Check:
    """The interpreter."""
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, platform.python_version(), "" if ok else "uv venv --python 3.11 .venv")


def package(name: str, floor: tuple[int, int]) -> Check:
    """A package that training needs: it imports (a wheel for other hardware may not) and is new enough."""
    least = ".".join(map(str, floor))
    try:
        version = str(importlib.import_module(name).__version__)
    except Exception as error:  # a broken wheel raises what it likes: ImportError, OSError, RuntimeError
        why = (str(error).splitlines() or [""])[0]
        return Check(name, False, f"cannot be imported: {why}", f"pip install --force-reinstall '{name}>={least}'")
    ok = tuple(int(part) for part in version.split(".")[:2]) >= floor
    return Check(name, ok, version, "" if ok else f"pip install --upgrade '{name}>={least}'")


def processor() -> Check:
    """Processors, and the GPU if torch can use it."""
    this = machine()
    found = f"{this['processors']} processors"
    try:
        import torch
    except Exception:  # said by the check of torch
        return Check("hardware", True, found, "", essential=False)
    if torch.cuda.is_available():
        return Check("hardware", True, f"{found}, {torch.cuda.get_device_name()}", "", essential=False)
    if this["gpus"]:
        fix = "install the CUDA build of torch for your driver, as the start page of PyTorch shows"
        return Check("hardware", False, f"{found}; torch cannot use the {this['gpus'][0]}", fix, essential=False)
    return Check("hardware", True, f"{found}, no GPU (enough for the demo and small models)", "", essential=False)


def film() -> str:
    """Write a small H.264 film and read it back. Returns what happened."""
    import av
    import numpy as np

    picture_HWC = np.zeros((32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "film.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
            container.mux(stream.encode())
        with av.open(path) as container:
            frames = sum(1 for _ in container.decode(video=0))
    if frames != 4:
        raise ValueError(f"wrote 4 frames, read {frames}")
    return f"H.264 written and read by PyAV {av.__version__}"


def guarded(name: str, check: Callable[[], str], fix: str) -> Check:
    """A check that fails by raising."""
    try:
        return Check(name, True, check(), "")
    except Exception as error:  # whatever it is, it is the finding
        return Check(name, False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", fix)


def disk(folder: Path) -> Check:
    """Free space where runs are written."""
    place = next(path for path in (folder, *folder.resolve().parents) if os.path.exists(path))
    free = shutil.disk_usage(place).free / 2**30
    ok = free >= FREE_GIB
    return Check("disk", ok, f"{free:.1f} GiB free", "" if ok else f"du -sh {place.resolve()}/* | sort -h | tail")


def memory() -> Check:
    """Memory that is free now; on systems that do not say, all of it."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    free = [int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:")]
    if not free:
        return Check("memory", True, "not told by this system", "", essential=False)
    ok = free[0] >= MEMORY_GIB
    return Check("memory", ok, f"{free[0]:.1f} GiB free", "" if ok else "ps aux --sort=-rss | head", essential=False)
