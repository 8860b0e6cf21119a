"""What works with what, tried and not promised: docs/support.json, and the tables of docs/support.md made from it.

    python -m tests.support                          every family and stage on the local engine, on an endpoint
    python -m tests.support --python .venv-vllm/bin/python       and on vLLM
    python -m tests.support --page                   docs/support.md anew from the numbers there are

A cell is a run of a stage on a tiny network of the family, saved and loaded as a real checkpoint is, on real films:

- features: run again beside the features of the first run it encodes nothing and comes out the same
- shared_prefix: what training computes on the shared prefix, values and gradients, was compared with a prompt of its
  own for every answer (the run's self-check); what is answered on it is what a network without kept keys answers
- lora: the stage with an adapter: trained, or as the model that answers
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests import support_stages as stages
from tests.support_page import page
from tests.support_trial import NotRun, Trial, reason

from longtake.errors import UserError
from longtake.runtime.load import FAMILIES

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "docs" / "support.json", ROOT / "docs" / "support.md"
ASPECTS = ("features", "shared_prefix", "lora")
ENGINES = ("local", "vllm", "remote", "sglang")
Cell = dict[str, str]


def cell(trial: Trial, name: str) -> Cell:
    """What came of a stage: {"features": "pass", …}, each else "refused: reason" or "not run: reason"."""
    found = {}
    for aspect in ASPECTS:
        try:
            stages.STAGES[name](trial, aspect)
            found[aspect] = "pass"
        except UserError as error:
            if "cannot be used" in error.what or "malformed" in error.why:
                raise  # films and rows are ours
            found[aspect] = f"refused: {error.what}" + (f" ({error.why})" if error.why else "")
        except ValueError as error:  # settings that exclude each other
            found[aspect] = f"refused: {reason(error)}"
        except NotRun as why:
            found[aspect] = f"not run: {why}"
        except Exception as error:
            error.add_note(f"{trial.kind}, {name}, {trial.engine_name}, {aspect}")
            raise
    return found


def family(kind: str, python: Path | None, folder: Path, say: Callable[[str], None]) -> dict[str, dict[str, Cell]]:
    """{stage: {engine: cell}}."""
    found: dict[str, dict[str, Cell]] = {}
    for engine in ENGINES:
        trial = Trial.open(kind, engine, python, folder / kind / engine)
        for name in stages.STAGES:
            found.setdefault(name, {})[engine] = made = cell(trial, name)
            say(f"{kind:20} {name:12} {engine:8} {made}")
        if trial.live is not None:
            trial.live.close()
    return found


def ordered(known: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> dict[str, dict[str, dict[str, Cell]]]:
    """Families, stages and engines as the code has them, whatever was tried last."""
    return {
        one.family: {name: {engine: known[one.family][name][engine] for engine in ENGINES} for name in stages.STAGES}
        for one in FAMILIES
        if one.family in known
    }


def main(words: Sequence[str]) -> int:
    """Exit code: 1 if anything failed for no stated reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.support", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, help="of the environment that has vLLM")
    parser.add_argument("--only", nargs="+", choices=[one.family for one in FAMILIES], help="these families alone")
    parser.add_argument("--page", action="store_true", help="write the page from docs/support.json and end")
    chosen = parser.parse_args(words)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not chosen.page:
        warnings.simplefilter("error")
        with tempfile.TemporaryDirectory() as scratch:
            for kind in chosen.only or [one.family for one in FAMILIES]:
                known[kind] = family(kind, chosen.python, Path(scratch), lambda text: print(text, flush=True))
                RESULT.write_text(json.dumps(ordered(known), indent=1) + "\n")
    PAGE.write_text(page(ordered(known)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
