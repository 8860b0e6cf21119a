"""A process for every seed of the study, which ends with the one that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def every_seed(seeds: Sequence[int], words: Sequence[str], jobs: int) -> list[int]:
    """A process for each seed, `jobs` at a time; returns the seeds whose process failed. They end with this one."""

    def one(seed: int) -> int:
        command = [sys.executable, "-m", "bench.study", "seed", str(seed), *words, "--tied"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            return process.wait()

    pool = ThreadPoolExecutor(jobs)
    try:
        codes = list(pool.map(one, seeds))
    finally:
        pool.shutdown(cancel_futures=True)
    return [seed for seed, code in zip(seeds, codes, strict=True) if code]


def tie() -> None:
    """Ends this process when the one that started it does, however it does: then the pipe between them breaks."""

    def wait() -> None:
        while os.read(0, 1):  # the bare file: a buffered one would be locked when this process ends first
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
