"""Pages of stages that make or learn preferences, and what is missing, half written or hostile in their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.fake import write_json, write_lines
from tests.report.test_missing import change_lines
from tests.report.test_page import EVIL, page

JUDGED, SCORES = "judge/judged.jsonl", "reward/scores.jsonl"
NAMES = (JUDGED, SCORES, "judge/summary.json", "reward/summary.json", "dpo/summary.json")


def test_the_page_of_all_stages(everything: Path) -> None:
    _, seen = page(everything)
    for said in (
        "both orders, film and narrative", "flipped with the order", "judge_plain: film alone", "narrative: 3 clips",
        "answer 1 · chosen", "A: answer 2, B: answer 1", "reward model +", "lead in reward, largest first",
        "on held-out pairs, films that it did not learn from", "Calibration share right", "Score and length in tokens",
        "human n =", "wrong order", "“the longer wins” gets", "labels: 83 %", "most wrong first",
    ):  # fmt: skip
        assert said in seen.text, said
    links = {attrs["href"][1:] for tag, attrs in seen.tags if tag == "a"}
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert any(link.startswith("judge-j") for link in links), "times in verdicts and answers lead to frames"


def test_a_demo_without_feedback_has_no_such_sections(made: Path) -> None:
    _, seen = page(made)
    assert not {"preferences", "reward"} & {attrs.get("id") for _, attrs in seen.tags}


@pytest.mark.parametrize(
    ("stage", "lead"),
    [
        ("judge", "60 pairs of answers judged, "),
        ("reward", "The reward model puts the better answer first in"),
        ("dpo", "dpo: the model puts the better answer first in 79 % of 31 held-out pairs."),
        ("ppo", "ppo: accuracy in training"),
    ],
)
def test_a_stage_of_feedback_has_its_page_too(heard: Path, stage: str, lead: str) -> None:
    text = page(heard / stage)[1].text
    assert lead in text
    assert "could not be read" not in text, "its summary.json is not the demo's"


@pytest.mark.parametrize("name", [*NAMES, "ppo/metrics.jsonl", "dpo/metrics.jsonl", "judge/thumbs/rl-0.jpg"])
def test_a_part_of_feedback_that_is_not_there(heard: Path, name: str) -> None:
    (heard / name).unlink()
    assert "could not be read" not in page(heard)[1].text


def test_stages_of_feedback_that_have_just_begun(heard: Path) -> None:
    for name in (*NAMES, "judge_plain/judged.jsonl", "judge_plain/summary.json"):
        (heard / name).unlink()
    text = page(heard)[1].text
    for said in ("Nothing was judged yet", "No judged pairs here", "No scores of held-out pairs here", "– no truth is"):
        assert said in text, said
    for stage in ("judge", "reward", "dpo"):
        (heard / stage / "metrics.jsonl").unlink(missing_ok=True)
        assert "No step has been written yet." in page(heard / stage)[1].text


def test_a_summary_alone_gives_the_numbers(heard: Path) -> None:
    for name in (JUDGED, SCORES):
        (heard / name).unlink()
    write_json(
        heard / "judge" / "summary.json", {"pairs": 7, "kept": 4, "flipped": 3, "accuracy": 0.75, "accuracy_n": 4}
    )
    write_json(heard / "reward" / "summary.json", {"accuracy": 0.625, "n": 8, "length_correlation": -0.5})
    text = page(heard)[1].text
    for said in ("Pairs kept 4 of 7 judged", "of those kept 75 % n = 4", "order 62 % n = 8 held out", "length −0.50"):
        assert said.lower() in text.lower(), said


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"nonsense\n", b'{"id": "a"}\n', b"\x00\n", b"{}\n"])
def test_broken_files_of_feedback(heard: Path, content: bytes) -> None:
    for name in NAMES:
        (heard / name).write_bytes(content)
    text = page(heard)[1].text
    if content == b"nonsense\n":
        for name in NAMES:
            assert name in text, f"{name} is said to be broken"


@pytest.mark.parametrize("name", [JUDGED, SCORES])
def test_a_file_of_one_row_and_one_cut_short(heard: Path, name: str) -> None:
    path = heard / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:30])
    assert f"{name}: 1 of 2 lines skipped (line 2 is half written)." in page(heard)[1].text


def test_rows_with_nothing_but_what_they_must_have(heard: Path) -> None:
    write_lines(heard / JUDGED, [{"id": "a", "outcome": "kept"}, {"id": "b", "outcome": "new"}])
    answers = [{"text": "left"}, {"text": "right"}]
    change_lines(
        heard / "judge_plain" / "judged.jsonl", narrative=None, receipt=None, strip=None, kind="", options=[],
        answer="", evidence=[], better=None, right=None, verdicts=[], answers=answers,
    )  # fmt: skip
    rows: list[dict[str, object]] = [{"id": "a", "model_chosen": 1, "model_rejected": 0.5}]
    rows += [{"id": "b", "model_chosen": float("nan"), "model_rejected": 0, "chosen": 3, "prompt": {"a": 1}}]
    write_lines(heard / SCORES, rows)
    text = page(heard)[1].text
    for said in ("reward/scores.jsonl: 1 pairs have a score that is no number.", "· not checked", "new 1", "in words"):
        assert said in text, said


def test_metrics_with_null_and_too_few_steps(heard: Path) -> None:
    rows = [{"step": 1, "score": None, "accuracy": 0.5, "length": 9}, {"step": 2, "score": float("nan"), "length": 9}]
    write_lines(heard / "ppo" / "metrics.jsonl", rows)
    write_lines(heard / "dpo" / "metrics.jsonl", [{"step": 1, "reward_chosen": 0.1, "held_accuracy": 0.5}])
    text = page(heard)[1].text
    assert "Score, truth and length" not in text
    assert "less likely" not in text


def test_text_of_judges_stays_text(heard: Path) -> None:
    lines = [json.loads(line) for line in (heard / JUDGED).read_text().splitlines()]
    for line in lines:
        line |= {"question": EVIL + "question", "kind": EVIL + "kind", "narrative": [{"caption": EVIL + "caption"}]}
        line["answers"][0] |= {"text": EVIL + "answer"}
        line["verdicts"] = [{"order": EVIL + "order", "said": EVIL + "said", "text": EVIL + "text"}]
        line["outcome"] = EVIL + "outcome"
    write_lines(heard / JUDGED, lines)
    rows = [json.loads(line) for line in (heard / SCORES).read_text().splitlines()]
    for row in rows:
        row |= {"prompt": EVIL + "prompt", "chosen": EVIL + "chosen"}
    rows[0]["source"] = EVIL + "source"
    write_lines(heard / SCORES, rows)
    html, seen = page(heard)
    text = "".join(seen.texts)
    places = ("question", "kind", "caption", "answer", "order", "said", "text", "outcome", "source", "prompt", "chosen")
    for place in places:
        assert EVIL + place in text, place
    assert html.count("<script") == 1
    assert not any(name.startswith("on") or name == "src" for _, attrs in seen.tags for name in attrs)
