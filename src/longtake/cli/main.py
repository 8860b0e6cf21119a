"""`longtake STAGE [file.yaml …] [rows.jsonl …] [--key value …]`: choose the stage, read settings, tell how it ended.

Exit codes: 0 done, 1 failed, 2 wrong settings, 130 interrupted, 141 nobody reads the output any more, 143 terminated.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import longtake
from longtake.cli import dry, environment, help  # noqa: A004 — the file's name
from longtake.cli.arguments import parse
from longtake.cli.launch import Team
from longtake.cli.stages import STAGES, Stage
from longtake.config import ConfigError, load, suggest
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.files import disk_full, full, plain

MOST_LINES = 6
OF_TRAIN = ("torch", "transformers", "safetensors", "tokenizers", "av", "PIL")


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants its machine back. Handled as Ctrl-C is."""


def main(argv: Sequence[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Run a command; `argv` None = the words of this process. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    team = Team(environment.launched(), partial(tell, json_output="--json" in words))
    try:
        if argv is None:
            prepare(words, stages, team)
        return command(words, stages, team)
    except ConfigError as error:
        return team.end(error, str(error), 2)
    except UserError as error:
        return team.end(error, str(error), 1)
    except KeyboardInterrupt as stop:
        if argv is None:  # what is left to do is quick, and a second Ctrl-C would only make it ugly
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return team.end(stop, interrupted(words, stages, team), 143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError as error:
        swallow(sys.stdout)
        if words and words[0] in stages and stages[words[0]].trains:
            return team.end(error, interrupted(words, stages, team), 141)
        return 141


def prepare(words: Sequence[str], stages: Mapping[str, Stage], team: Team) -> None:
    """This process as its command needs it: environment, streams, signals."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    environment.open_streams()
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder you are in was deleted", fix="cd to another") from None
    real = not {"--help", "-h", "--dry-run"} & set(words)
    if real and words and words[0] in stages and (stages[words[0]].trains or "--probe" in words):
        environment.restart(sys.orig_argv[1:])  # what is measured runs as what trains
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    team.hush()


def command(words: Sequence[str], stages: Mapping[str, Stage], team: Team) -> int:
    """Top-level words, or the stage. Raises UserError, KeyboardInterrupt and BrokenPipeError only."""
    if not words or words[0] in ("--help", "-h", "help"):
        print(help.stages_help(stages))
        return 0
    if words[0] == "--version":
        print(longtake.__version__)
        return 0
    name, *rest = words
    if name not in stages:
        near = suggest(name, stages)
        meant = f" — did you mean '{near}'?" if near else f"; there are {', '.join(stages)}"
        raise ConfigError([f"{name}: unknown stage{meant}"])
    log = team.new_log(json_output="--json" in rest)
    try:
        return run_stage(name, stages[name], rest, log, team)
    except (UserError, BrokenPipeError):
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in OF_TRAIN:
            raise crash(name, error, log) from error
        fix = "pip install -e '.[train]' in the clone"
        raise UserError(f"longtake {name} needs {missing}, which is not installed", fix=fix) from error
    except Exception as error:
        if disk_full(error):  # from a writer that did not go through log.writing
            raise full(log.folder.path if log.folder else Path.cwd()) from error
        raise crash(name, error, log) from error


def run_stage(name: str, stage: Stage, words: Sequence[str], log: Log, team: Team) -> int:
    """Read the settings and run; the run folder that was open is told how it ended."""
    module = importlib.import_module(stage.module)
    arguments = parse(module.Config, words, stage.positional)
    if "help" in arguments.common:
        help.print_stage_help(name, stage, module.Config)
        return 0
    if "dry-run" not in arguments.common:  # first of all: what is wrong on one rank only must not be told by none
        team.join(name, stage, log, interrupted([name, *words], {name: stage}, team))
    loaded = load(module.Config, arguments.files, arguments.given, arguments.problems)
    if "dry-run" in arguments.common:
        found = dry.plan(loaded)
        print(json.dumps({"stage": name, **plain(found)}) if log.json_output else dry.text(name, found, loaded))
        return 0
    try:
        summary: dict[str, Any] = module.run(loaded.config, log)
    except KeyboardInterrupt:
        team.ended("stopped: interrupted")
        raise
    except Exception as error:
        team.ended(f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        raise
    finally:
        log.clear()
    log.close()
    team.leave()
    if log.json_output:
        print(json.dumps(plain(summary)))
    elif not stage.speaks:
        log.summary(summary)
    sys.stdout.flush()
    if summary.get("ok") is not False:
        return 0
    if "why" in summary and log.leads:
        print(UserError(f"{name} came to nothing", why=summary["why"], fix=summary.get("fix", "")), file=sys.stderr)
    return 1


def tell(text: str, code: int, json_output: bool) -> int:
    """Say on stderr why it ended, in at most MOST_LINES; with --json stdout gets {"error": text} as well."""
    said = {sys.stderr: "\n".join(text.splitlines()[:MOST_LINES])}
    if json_output:
        said[sys.stdout] = json.dumps({"error": text})
    for stream, line in said.items():
        try:
            print(line, file=stream, flush=True)
        except OSError:  # a closed pipe, a full disk: nobody can be told
            swallow(stream)
    return code


def swallow(stream: TextIO) -> None:
    """Whatever is still to be written goes nowhere, or Python would complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def interrupted(words: Sequence[str], stages: Mapping[str, Stage], team: Team) -> str:
    """How to go on after Ctrl-C."""
    if not (words and words[0] in stages and stages[words[0]].trains):
        return "stopped"
    again = team.again([word for word in words if word != "--fresh"])
    return f"stopped; what was done is kept. To go on:\n  {again}"


def crash(name: str, error: Exception, log: Log) -> UserError:
    """A failure nobody foresaw: one line, and the whole traceback in a file."""
    what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if log.own is not None:  # the traceback is written where all else of this rank is
        return UserError(what, where=f"{log.own} holds the whole traceback")
    what = f"longtake {name} failed: {what}"
    details = "".join(traceback.format_exception(error))
    try:
        if log.folder is not None:
            path = log.folder.path / "error.log"
        else:
            path = Path(tempfile.mkstemp(prefix="longtake-", suffix=".log")[1])
        path.write_text(details, encoding="utf-8")
    except OSError:
        return UserError(what, where=details.splitlines()[-3].strip(), why="(no traceback file: the disk refused)")
    return UserError(what, where=f"{path} holds the whole traceback")


if __name__ == "__main__":
    sys.exit(main())
