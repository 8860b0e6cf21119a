"""One-place breaks of the maths and the loops; each must turn a test red, by an assertion, beside a green control run.

`python -m tests.mutants` (two forked workers) prints what survived and exits non-zero if anything did. Every mutant
is one file with one text replaced that lies before the real one on its package's path, and a forked process that runs
the tests of that file on it. `python -m tests.mutants train/step.py` tries the breaks of one file or folder alone,
`core` those of the machinery, `families` those of single families, of context, of vLLM's client and of runs on ranks.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import multiprocessing
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.testing
import torch.utils.checkpoint
from hypothesis import strategies
from tests import (
    mutants_answers,
    mutants_context,
    mutants_core,
    mutants_engines,
    mutants_feedback,
    mutants_judge,
    mutants_llava,
    mutants_loop,
    mutants_losses,
    mutants_nvila,
    mutants_prefix,
    mutants_ranks,
    mutants_ranks_cost,
    mutants_ranks_encode,
    mutants_ranks_fsdp,
    mutants_ranks_learn,
    mutants_ranks_watch,
    mutants_rewards,
    mutants_table,
    mutants_turns,
    mutants_vllm,
)
from tests.mutants_table import Mutant

ROOT = Path(__file__).parent.parent
TABLES = (  # the slowest first
    mutants_feedback,
    mutants_judge,
    mutants_ranks_watch,
    mutants_ranks_encode,
    mutants_ranks_fsdp,
    mutants_ranks_learn,
    mutants_ranks,
    mutants_rewards,
    mutants_loop,
    mutants_answers,
    mutants_prefix,
    mutants_turns,
    mutants_vllm,
    mutants_context,
    mutants_llava,
    mutants_nvila,
    mutants_core,
    mutants_engines,
    mutants_table,
    mutants_losses,
    mutants_ranks_cost,
)
FAMILIES = (  # a third of all, and the slowest
    mutants_context,
    mutants_llava,
    mutants_nvila,
    mutants_ranks_encode,
    mutants_ranks_fsdp,
    mutants_ranks_learn,
    mutants_ranks_watch,
    mutants_vllm,
)
MUTANTS = tuple(mutant for table in TABLES for mutant in table.MUTANTS)
TESTS = {file: names for table in TABLES for file, names in table.TESTS.items()}
PATIENCE = 600  # seconds in which the next one must be through
QUICK = ["-x", "-q", "--noconftest", "--assert=plain", "--tb=no", "--disable-plugin-autoload"]
QUICK += [f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "threadexception")]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `problem` is "" if a test's assertion caught it."""

    mutant: Mutant | None  # None = the control run
    caught_by: str
    problem: str


class Watch:
    """Notes the first failing test and whether it failed by an assertion."""

    def __init__(self) -> None:
        self.test, self.reason, self.error = "", "", ""

    def pytest_exception_interact(self, node, call, report):
        if not self.test:
            asserted = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
            self.test, self.reason = node.name, "" if asserted else call.excinfo.exconly().splitlines()[0]


def group(name: str) -> tuple[Mutant, ...]:
    """Those of "core" or "families", else those of files whose path begins so."""
    tables = {"core": [table for table in TABLES if table not in FAMILIES], "families": FAMILIES}.get(name)
    if tables is not None:
        return tuple(mutant for table in tables for mutant in table.MUTANTS)
    return tuple(mutant for mutant in MUTANTS if mutant.file.startswith(name))


def noticing(mutant: Mutant) -> tuple[str, ...]:
    """Tests of which one must turn red."""
    return mutant.tests or TESTS[mutant.file]


def run(mutant: Mutant | frozenset[str]) -> Outcome:
    """In a process of its own: the tests of a break, with it; those of many without any, as control."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(mutant, Mutant):
            text = (ROOT / "src/longtake" / mutant.file).read_text()
            if text.count(mutant.old) != 1:
                return Outcome(mutant, "", f"{mutant.file} holds the text to break {text.count(mutant.old)} times")
            package, _, name = mutant.file.rpartition("/")
            (Path(folder) / name).write_text(text.replace(mutant.old, mutant.new))
            spec = importlib.util.find_spec(f"longtake.{package}")
            spec.submodule_search_locations.insert(0, folder)  # before the package itself imports the file
            sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[spec.name])
            setattr(importlib.import_module("longtake"), package, sys.modules[spec.name])
        sys.dont_write_bytecode = True
        control = isinstance(mutant, frozenset)
        files = sorted(mutant) if control else noticing(mutant)
        watch = Watch()
        options = [*QUICK, "--rootdir", str(ROOT)]
        if any(name.startswith(("models/", "runtime/")) for name in files):
            options.append("-ptests.models.conftest")  # its fixtures
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            code = pytest.main([*options, *(str(ROOT / "tests" / name) for name in files)], plugins=[watch])
    if control:
        return Outcome(None, "", "" if code == 0 else f"the control run is red: {watch.test} {said.getvalue()[-2000:]}")
    if code == pytest.ExitCode.OK:
        return Outcome(mutant, "", "survived")
    if code != pytest.ExitCode.TESTS_FAILED or watch.reason or not watch.test:
        return Outcome(mutant, watch.test, f"red, but not by an assertion: {watch.reason or said.getvalue()[-500:]}")
    return Outcome(mutant, watch.test, "")


def warm_up() -> None:
    """What every child would otherwise load or compute for itself: the first use of hypothesis alone takes a second."""
    torch.set_num_threads(1)
    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.generate], report_multiple_bugs=False, derandomize=True, deadline=None
    )
    hypothesis.settings.load_profile("mutants")  # tests inherit it when they are imported: the first failure will do

    @hypothesis.settings(max_examples=2, deadline=None, database=None)
    @hypothesis.given(strategies.lists(strategies.one_of(strategies.integers(0, 3), strategies.sampled_from([5]))))
    def check(numbers):
        torch.testing.assert_close(torch.tensor(numbers), torch.tensor(numbers))

    check()
    network()
    for name in [name for name in sys.modules if name.partition(".")[0] == "longtake"]:
        del sys.modules[name]  # every child reads it anew, with its own break
    for name in [name for name in sys.modules if name.startswith(("tests.models", "tests.world"))]:
        del sys.modules[name]
    gc.freeze()


def network() -> None:
    """One pass of a tiny network, for what transformers and peft load at first use."""
    from tests.models import tiny

    from longtake.models.adapters import add_adapter
    from longtake.models.qwen3_vl import Qwen3VL

    words = tiny.tokenizer()
    model = Qwen3VL(tiny.network(words).eval(), words, tiny.PIXELS)
    with torch.no_grad():
        model.encode([tiny.film(0, 2)])
        model.prompt(tiny.ask(), None, None)
    add_adapter(model, "lora", 4, 8.0)


def _heard(tried, waiting) -> Outcome:
    """What came of it; a break that kills or stops its own process is heard of no more."""
    try:
        return waiting.get(PATIENCE)
    except multiprocessing.TimeoutError:
        return Outcome(tried if isinstance(tried, Mutant) else None, "", f"nothing was heard for {PATIENCE} s")


def main(wanted: str = "") -> int:
    """Breaks of a group."""
    mutants = group(wanted)
    warm_up()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2, maxtasksperchild=1) as pool:
        tried = [frozenset(name for m in mutants for name in noticing(m)), *mutants]
        waiting = [pool.apply_async(run, (one,)) for one in tried]
        control, *outcomes = [_heard(one, own) for one, own in zip(tried, waiting, strict=True)]
    if control.problem:
        print(control.problem)
        return 1
    loose = [outcome for outcome in outcomes if outcome.problem]
    for outcome in sorted(loose, key=lambda x: x.mutant.file):
        print(f"{outcome.mutant.file}: {outcome.mutant.why}: {outcome.problem} {outcome.caught_by}")
    print(f"{len(outcomes) - len(loose)} of {len(outcomes)} mutants caught by an assertion, control green")
    return bool(loose)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
