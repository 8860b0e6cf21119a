"""The study's numbers: seeds are gathered row by row, and the page says what they say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from bench import readme, study, study_page, study_plot
from bench.study_table import agreement, covers, gather
from tests.study_world import dumped

from longtake.errors import UserError
from longtake.log import Log

SEEDS = (0, 1)
ABOUT = {
    "machine": {"system": "Linux", "processors": 2, "gpus": []},
    "versions": {"python": "3", "torch": "2", "transformers": "5"},
}
ARMS = {
    "a": ("annotated", "full", "rejection", "grpo", "dpo", "ppo"),
    "b": ("with", "without"), "c": ("narrative", "plain"),
    "d": ("start", "64", "256", "all"), "e": ("plain", "curriculum", "objects"),
    "f": ("start", "base", "all", "hard", "no_sft"),
}  # fmt: skip
PAIRS = {
    "a": [("grpo", "annotated"), ("grpo", "full"), ("dpo", "full")], "b": [("with", "without")],
    "c": [("narrative", "plain")], "d": [("all", "64"), ("64", "start")], "e": [("curriculum", "plain")],
    "f": [("hard", "all"), ("no_sft", "base")],
}  # fmt: skip
MEASURES = {"b": ("sampled_slope", "greedy_slope"), "c": ("accuracy_all", "accuracy_verdicts")}
FACTS = {
    "a": {"pairs": 900, "pairs_from": "judge", "chains": 1200, "more": 480},
    "c": {"events_right": 0.99, "films_right": 0.9},
    "f": {part: {"from": 0.1, "to": 0.4} for part in ("easy", "medium", "hard")},
}  # fmt: skip


def numbers(seed: int) -> dict[str, float]:
    own = {
        "sampled": 0.5 + seed / 10,
        "greedy": 0.75,
        "length": 30.0,
        "steps": 80,
        "cost": 1.25e6,
        "seconds": 40.0 + seed,
    }
    own |= {f"{way}_{n}": 0.5 for way in ("sampled", "greedy") for n in (8, 16, 32, 64, "slope")}
    return own | {"reward": 0.7, "accuracy_all": 0.9, "format": 1.0}


def result(folder: Path, letter: str, seed: int, shift: float = 0.05, **changed: Any) -> None:
    """Differences of `shift` ± 0.04 over 600 questions, in both measures."""
    pairs = {"64": {"pairs": 64}, "256": {"pairs": 256}, "all": {"pairs": 800}}
    arms = {name: numbers(seed) | (pairs.get(name, {}) if letter == "d" else {}) for name in ARMS[letter]}
    found = [
        {
            "arm": arm,
            "against": against,
            "measure": key,
            "value": shift,
            "low": shift - 0.04,
            "high": shift + 0.04,
            "n": 600,
        }
        for arm, against in PAIRS[letter]
        for key in MEASURES.get(letter, ("sampled", "greedy")) + (("reward",) if arm == "all" else ())
    ]
    told = {
        "row": letter,
        "seed": seed,
        "scale": 1.0,
        "arms": arms,
        "differences": found,
        "facts": FACTS.get(letter, {}),
    }
    dumped(folder / str(seed) / letter / "result.json", told | ABOUT | {"date": f"2026-11-2{seed}"} | changed)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """All rows under two seeds; row e under the first alone."""
    for letter in ARMS:
        for seed in SEEDS:
            if (letter, seed) != ("e", 1):
                result(tmp_path, letter, seed)
    dumped(tmp_path / "0.old-1" / "a" / "result.json", {})
    return tmp_path


def page() -> str:
    return (readme.ROOT / study_page.PAGE).read_text(encoding="utf-8")


def test_the_page_is_as_its_numbers_say() -> None:
    known = json.loads(study.RESULT.read_text()) if study.RESULT.exists() else {}
    made = study_page.pages(known, page())
    stale = [name for name, text in made.items() if (readme.ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, "run: python -m bench.study page"


def test_seeds_are_gathered_row_by_row(out: Path) -> None:
    found = gather(out)
    assert list(found) == [*"abcdef", "machine", "versions", "date", "seeds"]
    assert (found["seeds"], found["date"], found["machine"]) == ([0, 1], "2026-11-21", ABOUT["machine"])
    assert {letter: found[letter]["seeds"] for letter in "ade"} == {"a": [0, 1], "d": [0, 1], "e": [0]}
    for letter in "abcdef":
        assert found[letter].keys() == {"seeds", "arms", "differences", "verdict", "facts"}
        for one in found[letter]["differences"]:
            assert one.keys() == {
                "arm", "against", "measure", "difference", "interval", "n", "verdict", "answers", "per_seed",
            }  # fmt: skip
    grpo = found["a"]["arms"]["grpo"]
    assert (grpo["mean"]["sampled"], grpo["per_seed"]["1"]["sampled"]) == (0.55, 0.6)
    one = found["a"]["differences"][0]
    assert (one["difference"], one["n"], one["per_seed"]) == (
        0.05,
        1200,
        {"0": [0.05, 0.01, 0.09], "1": [0.05, 0.01, 0.09]},
    )
    assert one["interval"] == pytest.approx([0.05 - 0.04 / math.sqrt(2), 0.05 + 0.04 / math.sqrt(2)], abs=1e-6)
    assert [one["answers"] for one in found["a"]["differences"]] == [False] * 2 + [True] * 4


@pytest.mark.parametrize(("shift", "said"), [(0.05, "gain"), (0.01, "no gain"), (-0.05, "loss")])
def test_a_verdict_is_whether_the_interval_holds_zero(tmp_path: Path, shift: float, said: str) -> None:
    result(tmp_path, "b", 0, shift)
    found = gather(tmp_path)
    assert (found["b"]["verdict"], found["b"]["differences"][0]["verdict"]) == (said, said)
    assert said in study_page.section("b", found["b"])


def test_a_row_with_both_is_mixed(tmp_path: Path) -> None:
    result(tmp_path, "e", 0)
    told = json.loads((tmp_path / "0" / "e" / "result.json").read_text())
    for edge in ("value", "low", "high"):
        told["differences"][0][edge] -= 0.2
    dumped(tmp_path / "0" / "e" / "result.json", told)
    assert gather(tmp_path)["e"]["verdict"] == "mixed"


def test_an_arm_that_a_seed_lacks_is_of_the_others(out: Path) -> None:
    file = out / "1" / "d" / "result.json"
    told = json.loads(file.read_text())
    del told["arms"]["256"]
    told["differences"] = [one for one in told["differences"] if one["arm"] == "all"]
    dumped(file, told)
    found = gather(out)["d"]
    assert list(found["arms"]["256"]["per_seed"]) == ["0"]
    assert {(one["arm"], len(one["per_seed"])) for one in found["differences"]} == {("all", 2), ("64", 1)}


def test_results_that_do_not_belong_together_are_refused(out: Path, tmp_path: Path) -> None:
    result(out, "a", 4, versions={"python": "4"})
    with pytest.raises(UserError, match="several kinds of versions"):
        gather(out)
    with pytest.raises(UserError, match="no row of the study"):
        gather(tmp_path / "none")


def test_nothing_known_is_lost_by_a_part(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    whole, part = gather(out), {}
    monkeypatch.setattr(study, "RESULT", out / "study.json")
    monkeypatch.setattr(study_page, "write", part.update)
    study.tell(whole, Log())
    assert json.loads((out / "study.json").read_text()) == whole == part
    for letter in "bcdef":
        (out / "0" / letter / "result.json").unlink()
    changed = gather(out)
    assert covers(whole, changed)
    assert not covers(changed, whole)
    study.tell(changed, Log())
    assert json.loads((out / "study.json").read_text()) == whole
    told = capsys.readouterr().out
    assert "row a, seed 0: all 108 numbers as they were" in told
    assert "it is left as it is" in told
    study.tell(changed | {"scale": 0.01}, Log())
    assert "it ran, and tells nothing" in capsys.readouterr().out


def test_a_row_that_is_run_again_is_compared_but_for_seconds(out: Path) -> None:
    whole = gather(out)
    again = json.loads(json.dumps(whole))
    again["a"]["arms"]["ppo"]["per_seed"]["1"]["seconds"] = 99.0
    again["b"]["arms"]["with"]["per_seed"]["0"]["greedy_8"] += 0.125
    said = list(agreement(whole, again))
    assert "row a, seed 1: all 108 numbers as they were" in said
    assert "row b, seed 0: numbers differ by up to 0.125" in said
    assert list(agreement({}, whole)) == []


def test_the_page_says_what_was_gained_and_what_was_not(out: Path) -> None:
    found = gather(out)
    said = study_page.answers(found)
    assert "- **(a) equal compute: gain.**\n  - GRPO − SFT, more chains: sampled +5.0 [+2.2, +7.8] gain; greedy" in said
    assert "too easy" not in said
    for letter in "ab":
        for seed in SEEDS:
            result(out, letter, seed, 0.01)
    nothing = study_page.answers(gather(out))
    assert "(a) equal compute: no gain." in nothing
    assert "**these films are too easy for SFT**" in nothing
    assert nothing.count(" no gain;") == 3
    made = study_page.pages(found, page())
    assert set(made) == {study_page.PAGE, study_page.FIGURE, study_page.BY_FRAMES, study_page.BY_PAIRS}
    assert "Not measured yet" not in made[study_page.PAGE]
    assert "| GRPO | 55.0 (50.0 60.0) | 75.0 (75.0 75.0) | 30 | 80 | 1.25 | 40 |" in made[study_page.PAGE]
    assert "![" in study_page.pages(found, page())[study_page.PAGE]


def test_a_page_follows_its_numbers_and_says_what_is_missing(out: Path) -> None:
    found = gather(out)
    before = study_page.pages(found, page())
    for letter in "bd":
        for arm in found[letter]["arms"].values():
            arm["mean"] |= {"sampled": 0.9, "sampled_8": 0.9}
    for one in found["a"]["differences"]:
        one["difference"] += 0.01
    after = study_page.pages(found, page())
    assert all(before[name] != after[name] for name in before)
    empty = study_page.pages({}, page())
    assert list(empty) == [study_page.PAGE]
    assert empty[study_page.PAGE].count(study_page.LATER) == 8
    part = study_page.pages({key: value for key, value in found.items() if key not in "bdef"}, page())
    assert set(part) == {study_page.PAGE, study_page.FIGURE}


def test_seeds_that_disagree_are_told(out: Path) -> None:
    result(out, "c", 1, -0.02)
    for one in gather(out)["c"]["differences"]:
        assert "disagree" not in study_page.between(one), "where nothing is claimed there is nothing to doubt"
    result(out, "c", 0, 0.2)
    assert study_page.between(gather(out)["c"]["differences"][0]).endswith(" gain (seeds disagree)")


def test_figures_show_every_answer(out: Path) -> None:
    found = gather(out)
    drawn = study_page.figures(found)
    answering = sum(one["answers"] for letter in "abcdef" for one in found[letter]["differences"])
    assert drawn[study_page.FIGURE].count('class="bar"') == answering
    for path in (study_page.BY_FRAMES, study_page.BY_PAIRS):
        curves = [points.split() for points in re.findall(r'<polyline[^>]*points="([^"]*)"', drawn[path])]
        assert [len(points) for points in curves] == ([4] * 4 if path == study_page.BY_FRAMES else [3] * 3)
    assert drawn == study_page.figures(json.loads(json.dumps(found)))


@pytest.mark.parametrize("colour", study_plot.COLOURS)
def test_colours_are_seen_on_a_light_and_on_a_dark_page(colour: str) -> None:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    own = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert 1.05 / (own + 0.05) >= 4
    assert (own + 0.05) / (0.0056 + 0.05) >= 4
