"""The pages are true: numbers as the scripts write them, links, commands and rows that work, no path of one machine."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from bench import blind, cpu_page, demo, readme, shapes

from longtake.cli.main import main
from longtake.cli.stages import STAGES
from longtake.data.rows import sift_examples, sift_questions
from longtake.errors import UserError
from longtake.rewards.user import load

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(
    r"https?://|file://|(?<![\w.])/(?:work|home|root|tmp|usr|opt|mnt|Users)/|\bpypi\b", re.IGNORECASE
)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what stands after the language, text) of every fenced block."""
    found = [(said.split(), text) for said, text in FENCE.findall(page.read_text())]
    return [(" ".join(said[1:]), text) for said, text in found if said[:1] == [language]]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell line that is shown, and of every `longtake …` within a sentence."""
    found = []
    for page in PAGES:
        lines = [line for _, text in blocks(page, "sh") for line in text.splitlines()]
        prose = FENCE.sub("", page.read_text())
        lines += re.findall(r"`(longtake [^`]*)`", prose)
        found += [(page.name, line) for line in lines if line.strip()]
    return found


SHOWN = commands()
LONGTAKE = [(page, line) for page, line in SHOWN if line.startswith("longtake ")]
MAKE = [(page, line) for page, line in SHOWN if line.startswith("make ")]


def test_pages_are_as_the_scripts_write_them() -> None:
    made = readme.pages(*(json.loads(file.read_text()) for file in (demo.RESULT, blind.RESULT, cpu_page.RESULT)))
    stale = [name for name, text in made.items() if (ROOT / name).read_text() != text]
    assert not stale, "run: python -m bench.readme"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [link.partition("#") for link in LINK.findall(text)]
    assert not [target for target, _, _ in targets if target and not (page.parent / target).exists()]
    for target, _, anchor in targets:
        if anchor:
            other = (page.parent / target if target else page).read_text()
            titles = [
                re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)$", other, re.M)
            ]
            assert anchor in titles


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_machine_and_no_package_host(page: Path) -> None:
    assert not ELSEWHERE.findall(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page: Path) -> None:
    """`src/longtake/…`, `tests/…` and `bench/…`, save those with a NAME in capitals and those that a page invents."""
    invented = {"src/longtake/rewards/evidence.py", "src/longtake/engines/plain.py"}
    named = set(re.findall(r"`((?:src|tests|bench|docs)/[\w./-]+\.\w+)`", page.read_text())) - invented
    assert not [name for name in named if not re.search(r"[A-Z]{4}", name) and not (ROOT / name).exists()]


@pytest.mark.parametrize(("page", "line"), LONGTAKE)
def test_commands_that_are_shown_are_understood(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)[1:]
    if len(words) == 1:
        assert words[0] in STAGES
    elif "DIR" not in words and "STAGE" not in words:
        assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err


def test_every_stage_is_shown_and_make_targets_exist() -> None:
    assert {shlex.split(line, comments=True)[1] for _, line in LONGTAKE} >= set(STAGES)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {shlex.split(line, comments=True)[1] for _, line in MAKE} <= targets


ROWS = [(page, said, text) for page in PAGES for said, text in blocks(page, "json")]


@pytest.mark.parametrize(("page", "said", "text"), ROWS)
def test_rows_that_are_shown_are_read(page: Path, said: str, text: str, tmp_path: Path) -> None:
    """The same question in every format; `learn` marks rows for sft, `picture` those about a picture."""
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    questions, bad = sift_questions(file)
    assert not bad
    (question,) = questions
    assert (question.options, question.answer) == (("left", "middle", "right"), "B")
    assert question.video == str(tmp_path / ("cups/7.png" if "picture" in said else "films/7.mp4"))
    examples, without = sift_examples(file)
    assert (len(examples), len(without)) == ((1, 0) if "learn" in said else (0, 1))


def test_the_reward_that_is_shown_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, tried = (text for _, text in blocks(ROOT / "docs/adding-a-reward.md", "python")[:2])
    (tmp_path / "my.py").write_text(mine)
    monkeypatch.chdir(tmp_path)
    *before, last = tried.strip().splitlines()
    call, _, promised = last.partition("  # ")
    names: dict[str, Any] = {}
    exec("\n".join(before), names)
    assert eval(call, names) == float(promised)
    assert load("my.py:score")("at 5 s", {"evidence": [[3.0, 3.4]]}) == 0.0


def test_the_twin_that_is_shown_equals_its_function() -> None:
    """docs/adding-an-algorithm.md, against the files it would go to."""
    import torch
    from tests.plain import advantage as plain

    import longtake.maths.advantage as fast

    function, _, twin, *_ = (text for _, text in blocks(ROOT / "docs/adding-an-algorithm.md", "python"))
    ours, theirs = dict(vars(fast)), dict(vars(plain))
    exec("from __future__ import annotations\n" + function, ours)
    exec(twin, theirs)
    groups = [[0.0, 1.0, 0.0, 0.1], [0.0] * 4, [1.0] * 4, [1.1, 0.1, 1.0, 1.0]]
    got = ours["group_mean_over_mean"](torch.tensor(groups, dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(theirs["group_mean_over_mean"](groups), dtype=torch.float64))


def test_code_that_is_shown_from_a_file_stands_there() -> None:
    (shown,) = (t for _, t in blocks(ROOT / "docs/adding-an-engine.md", "python") if "def logits" in t)
    assert shown in (ROOT / "tests/plain/engine.py").read_text()


def test_letters_of_records_are_explained() -> None:
    explained = re.findall(r"^\| ([A-Z](?:, [A-Z])*) \|", (ROOT / "docs/shapes.md").read_text(), re.MULTILINE)
    assert shapes.letters() <= {letter for line in explained for letter in line.split(", ")}


def run(folder: Path, summary: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir()
    done = {"stage": "demo", "status": "done", "config": {"scale": 1.0}, "started": "2026-01-02T03:04:05+00:00"}
    done |= {"machine": {"processors": 2, "gpus": []}, "versions": {"python": "3.11.7"}}
    (folder / "run.json").write_text(json.dumps(done | changes))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def one() -> dict[str, Any]:
    """A summary to alter."""
    return dict(copy.deepcopy(json.loads(demo.RESULT.read_text())["runs"][0]))


def test_demos_are_gathered_by_seed(tmp_path: Path, one: dict[str, Any]) -> None:
    folders = [run(tmp_path / str(seed), one | {"seed": seed}) for seed in (5, 3)]
    found = demo.gather(folders)
    assert [summary["seed"] for summary in found["runs"]] == [3, 5]
    assert (found["date"], found["machine"]["processors"]) == ("2026-01-02", 2)
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "running"}, "it is running"),
        ({"stage": "grpo"}, "a run of grpo"),
        ({"config": {"scale": 0.1}}, "its scale is 0.1"),
        ({"versions": {"python": "3.12.1"}}, "python is 3.12.1, of the first demo 3.11.7"),
        ({"machine": {"processors": 8, "gpus": []}}, "processors is 8"),
    ],
)
def test_demos_that_cannot_be_compared_are_refused(
    tmp_path: Path, one: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    folders = [run(tmp_path / "a", one | {"seed": 1}), run(tmp_path / "b", one | {"seed": 2}, **changes)]
    with pytest.raises(UserError, match=re.escape(why)):
        demo.gather(folders)
    with pytest.raises(UserError, match="comes twice"):
        demo.gather([folders[0], folders[0]])


def test_the_picture_and_the_table_show_what_was_measured(one: dict[str, Any]) -> None:
    measured = json.loads(demo.RESULT.read_text())
    other = copy.deepcopy(one) | {"seed": 99}
    other["grpo"]["by_frames"]["64"]["sampled"] = one["grpo"]["by_frames"]["64"]["sampled"] - 0.5
    runs = [one, other]
    before, after = readme.picture([one], 0.25), readme.picture(runs, 0.25)
    frames = len(one["grpo"]["by_frames"])
    assert (before.count("<circle"), after.count("<circle")) == (4 * frames, 8 * frames)
    assert f"{one['grpo']['by_frames']['64']['sampled'] - 0.25:.0%}" in after
    assert "| 99 |" in readme.table(measured | {"runs": runs})


def test_a_page_without_its_marker_is_refused() -> None:
    page = "<!-- runs: x -->\nold\n<!-- /runs -->\n"
    assert readme.filled(page, {"runs": "new"}) == "<!-- runs: x -->\n\nnew\n\n<!-- /runs -->\n"
    with pytest.raises(ValueError, match="gain"):
        readme.filled(page, {"gain": "new"})
