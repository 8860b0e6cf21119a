"""The page as a whole: what it says, that it needs nothing from outside, and that model text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.fake import write_json, write_lines

from longtake.errors import UserError
from longtake.report import build

SIZE = 6_000_000  # bytes
EVIL = "</b></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg onload=alert(1)>{{ 7 * 7 }}"
VOID = {"meta", "img", "br"}


class Seen(HTMLParser):
    """Tags with their attributes, ids and text; complains about tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts).replace("\u202f", " "))


def page(folder: Path) -> tuple[str, Seen]:
    html = build(folder).read_text(encoding="utf-8")
    return html, Seen(html)


def test_it_says_what_was_run_and_what_came_of_it(made: Path) -> None:
    _, seen = page(made)
    for said in (
        "Sampled accuracy went from", "greedy from", "(64 frames, 80 questions)",
        "seed 7", "2 processors", "torch 2.13.0+cpu",
        "By number of frames", "By kind sampled, at 64 frames", "By reasoning hops greedy, at 64 frames", "n = 20",
        "Does it train with eyes open?", "chance is 27 %", "frames shuffled",
        "Held-out greedy accuracy", "only mixed ones teach", "Entropy, nats a token",
        "How often each question was answered rightly", "% rollout: answers are sampled token by token",
        "each was decoded at most 1 time", "moov atom not found",
        "held-out greedy accuracy 0.840 reached 0.8 at step 400", "<answer>", "pyav 18.1.0", "32 × 32 px",
    ):  # fmt: skip
        assert said in seen.text, said
    for kind in ("spatial", "temporal", "goal", "plot"):
        assert kind in seen.text


def test_it_is_one_file_that_loads_nothing(made: Path) -> None:
    html, seen = page(made)
    assert len(html.encode()) < SIZE
    assert "//" not in re.sub(r"base64,[\w+/=]*|// Filters.*", "", html), "no address of another place"
    for tag, attrs in seen.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert "src" not in attrs, (tag, attrs)
        assert attrs.get("href", "#").startswith("#"), attrs
    assert set(re.findall(r"url\((.{0,16})", html)) == {"data:image/jpeg;"}
    policy = next(attrs["content"] for tag, attrs in seen.tags if attrs.get("http-equiv"))
    script = html.split("<script>")[1].split("</script>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")


def test_links_lead_somewhere(made: Path) -> None:
    _, seen = page(made)
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    links = {attrs["href"][1:] for tag, attrs in seen.tags if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert any(re.fullmatch(r"grpo-\d+-\d+f\d+", link) for link in links), "times in answers lead to frames"


def test_text_from_outside_stays_text(folder: Path) -> None:
    path = folder / "grpo" / "rollouts" / "000001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {"question": EVIL + "question", "kind": EVIL + "kind"}
        line["options"][0] = EVIL + "option"
        line["answers"][0] |= {"text": EVIL + "answer", "finish": EVIL + "finish", "parts": {EVIL + "part": 1.0}}
        line["receipt"] |= {"path": EVIL + "path", "backend": EVIL + "backend", "cut": EVIL + "cut"}
    write_lines(path, lines)
    run = json.loads((folder / "grpo" / "run.json").read_text())
    run |= {"notes": [EVIL + "note"], "status": EVIL + "status", "started": "2026-11-22T10:08 " + EVIL + "started"}
    run["films"]["quarantined"] = [{"path": EVIL + "film", "reason": EVIL + "reason"}]
    run["seconds"] |= {EVIL + "phase": 900.0}
    run["config"] |= {"model": EVIL + "model", EVIL + "key": EVIL + "value"}
    write_json(folder / "grpo" / "run.json", run)
    with (folder / "grpo" / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({"step": step, EVIL + "metric": step}) + "\n" for step in (1, 2)))
    html, seen = page(folder)
    text = "".join(seen.texts)
    places = "question kind option answer finish part path backend cut note status started film reason phase model"
    for place in places.split():
        assert EVIL + place in text, place
    assert html.count("<script") == 1
    assert not any(name.startswith("on") or name == "src" for _, attrs in seen.tags for name in attrs)
    assert not [tag for tag, attrs in seen.tags if tag == "svg" and "viewbox" not in attrs]


def test_the_same_files_give_the_same_page(folder: Path) -> None:
    first = build(folder).read_bytes()
    assert build(folder).read_bytes() == first
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if name.startswith(".report")]


@pytest.mark.parametrize("stage", ["base", "sft", "difficulty", "grpo", "eval/grpo", "eval"])
def test_a_single_stage_has_its_page_too(made: Path, stage: str) -> None:
    _, seen = page(made / stage)
    lead = {
        "base": "loss in training went from", "sft": "held-out greedy accuracy is", "grpo": "accuracy in training went",
        "difficulty": "Of 800 questions answered 10 times", "eval/grpo": "Sampled accuracy is",
        "eval": "Sampled accuracy went from",
    }  # fmt: skip
    assert lead[stage] in seen.text
    (made / stage / "report.html").unlink()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        build(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "none")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json could not be read"):
        build(tmp_path)
