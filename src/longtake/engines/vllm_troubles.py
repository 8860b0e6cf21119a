"""What vLLM says when it does not start or does not answer, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.errors import UserError

SETUP = "make vllm, then name .venv-vllm/bin/python"
HEADS = ("CPU attention", "head_size", "head size", "head_dim")
REACH = {  # what vllm_listen.py says
    "another run": "wait until that has ended, or start a second vllm_listen.py at another port",
    "another version": "start the vllm_listen.py of this longtake there",
    "seen from both": "mount it there under the same name, or name another --out",
}
MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "allocate memory", "for kv", "KV cache", "cache blocks")


def unstarted(message: Mapping[str, str], python: str, log: Path, options: Mapping[str, Any]) -> UserError:
    """Why it did not start. `message`: kind and first line of the error, or how the process ended."""
    kind, why = message.get("kind", ""), message.get("why", f"it began with {message['op']!r}")
    if kind in ("ModuleNotFoundError", "ImportError"):
        return UserError("that Python has no vLLM", where=python, why=why, fix=SETUP)
    said = f"{kind}: {why}" if kind else why
    return UserError("vLLM does not start", where=str(log), why=said, fix=_remedy(said, options))


def refused(message: Mapping[str, str], what: str, options: Mapping[str, Any]) -> UserError:
    """Why it does not take `what`."""
    said = f"{message['kind']}: {message['why']}"
    return UserError(f"vLLM does not take {what}", why=said, fix=_remedy(said, options))


def dead(why: str, log: Path) -> UserError:
    """It died again after it was started anew."""
    fix = "lower --engine.context or --engine.memory if memory ran out, or use --engine.kind local"
    return UserError("vLLM died twice", where=str(log), why=why, fix=fix)


def _remedy(said: str, options: Mapping[str, Any]) -> str:
    context = f"--engine.context, now {options['max_model_len']}"
    if found := [fix for words, fix in REACH.items() if words in said]:
        return found[0]
    if "architectures" in said:
        return "vLLM does not know this network: --engine.kind local"
    if any(word in said for word in HEADS):
        return "on a CPU vLLM needs heads of 32 numbers or more: --engine.kind local"
    if "encoder cache" in said:
        return f"raise {context}, or show fewer frames"
    if any(word in said for word in MEMORY):
        return f"give keys and values another --engine.memory, or lower {context}"
    if "max_model_len" in said:
        return f"lower {context}"
    if "said nothing" in said:
        return "raise --engine.patience, or look into the log"
    return "look into the log, or use --engine.kind local"
