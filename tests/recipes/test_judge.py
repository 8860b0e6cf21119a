"""Judged by the model in this process: the real path, an engine with an opinion, and kills; and settings that clash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.recipes.judges import TINY, config, files, run
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, summary, write

from longtake.config import Given, resolve
from longtake.data.pairs import read_pairs, sift_pairs
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.recipes import judge
from longtake.records import Answer, Draw, Group, Prompt
from longtake.runtime import load
from longtake.train import cast
from longtake.train.judge_settings import Context, Judge

WORDS = """\
caption: what happens ?
clip: "{caption}"
narrative: "{clips} new"
pair: "{narrative} {question} start {first} same {second} old"
score: "{narrative} {question} start {answer} old"
"""
DEATHS = [
    Death("longtake.train.asking:append_jsonl", 5),
    Death("longtake.train.asking:append_jsonl", 35),
    Death("longtake.log.log:Log.step", 2),
]

pytestmark = pytest.mark.usefixtures("one_thread")


class Opinion:
    """An engine whose answers are letters, whose captions say when, and whose verdicts prefer the first letter."""

    asked: list[str] = []  # noqa: RUF012 — emptied by the fixture

    def __init__(self, model: Any, features: Any, weights: str, **_: Any) -> None:
        self.words = model.tokenizer

    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        return [
            Group(prompt, tuple(self.answer(prompt, place, draw) for place, draw in enumerate(own)))
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def answer(self, prompt: Prompt, place: int, draw: Draw) -> Answer:
        text = self.words.decode(prompt.ids)
        self.asked.append(text)
        said = "ABCD"[(place + int(prompt.id[1:])) % 4] if prompt.id[1:].isdigit() else "s1 none"
        if " start " in text:
            first, second = text.split(" start ")[1].split(" old")[0].split(" same ")
            said = f"<answer>{'A' if first < second else 'B'}</answer>"
        return Answer((7,), (0.0,), said, "stop", draw.seed, "none")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.yaml").write_text(WORDS)
    return tmp_path / "words.yaml"


@pytest.fixture
def opinion(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Opinion.asked.clear()
    monkeypatch.setattr(cast, "LocalEngine", Opinion)
    return Opinion.asked


def test_an_untrained_model_judges_nothing_but_all_is_told(world: World, tmp_path: Path, words: Path) -> None:
    done = run(config(world, tmp_path / "run", prompts=words))
    assert (done["ok"], done["pairs"], done["written"], done["cost"]) == (False, 8, 0, None)
    assert sum(done[name] for name in ("kept", "flipped", "ties", "unparsable", "same", "failed")) == 8
    assert done["calls"] == 16 + 16
    rows = read_jsonl(tmp_path / "run" / "judged.jsonl")
    for row in rows:
        assert (tmp_path / "run" / row["strip"]).exists()
        assert len(row["answers"]) == len(row["verdicts"]) == len(row["narrative"]) == 2
    assert read_json(tmp_path / "run" / "summary.json") == done
    assert "does not know" not in str(read_json(tmp_path / "run" / "run.json")["notes"])


def test_words_that_the_judge_does_not_know_are_said(world: World, tmp_path: Path) -> None:
    run(config(world, tmp_path / "run"))
    assert "does not know" in read_json(tmp_path / "run" / "run.json")["notes"][0]


def test_a_pair_that_is_sampled_again_is_written_once(
    world: World, tmp_path: Path, words: Path, opinion: list[str]
) -> None:
    done = run(config(world, tmp_path / "run", prompts=words, answers=8))
    pairs, bad = sift_pairs(tmp_path / "run" / "pairs.jsonl")
    assert bad == []
    assert len(pairs) == done["written"] < done["kept"]
    judged = read_jsonl(tmp_path / "run" / "judged.jsonl")
    texts = {(row["question_id"], *sorted(one["text"] for one in row["answers"])) for row in judged}
    assert len(pairs) == len(texts)


def test_accuracy_is_the_share_of_right_choices(world: World, tmp_path: Path, words: Path, opinion: list[str]) -> None:
    done = run(config(world, tmp_path / "run", prompts=words))
    rows = read_jsonl(tmp_path / "run" / "judged.jsonl")
    right = []
    for row in rows:
        first, second = (answer["text"] for answer in row["answers"])
        assert row["outcome"] == "kept"
        assert row["better"] == (0 if first < second else 1)
        correct = [text == row["answer"] for text in (first, second)]
        assert [answer["correct"] for answer in row["answers"]] == correct
        assert row["right"] == (correct[row["better"]] if any(correct) else None)
        right += [correct[row["better"]]] * any(correct)
    assert 0 < len(right) == done["accuracy_n"]
    assert done["accuracy"] == done["accuracy_all"] == done["accuracy_verdicts"] == sum(right) / len(right)
    assert done["accuracy_verdicts_n"] == 2 * len(right)
    assert sum(own["pairs"] for own in done["by_kind"].values()) == 8
    pairs = read_pairs(tmp_path / "run" / "pairs.jsonl")
    assert [sorted((pair.chosen, pair.rejected)) == [pair.chosen, pair.rejected] for pair in pairs] == [True] * 8


def test_the_judge_reads_the_captions_of_its_film_in_order(
    world: World, tmp_path: Path, words: Path, opinion: list[str]
) -> None:
    run(config(world, tmp_path / "run", prompts=words))
    verdicts = [text for text in opinion if " start " in text]
    assert len(verdicts) == 16
    assert all("s1 none s1 none new" in " ".join(text.split()) for text in verdicts)
    captions = [text for text in opinion if "what happens ?" in text and " start " not in text]
    assert len(captions) == 16
    first, second = captions[:2]
    assert "<1.0 seconds>" in first
    assert "<5.0 seconds>" in second


def test_rubrics_score_each_answer_once(world: World, tmp_path: Path, words: Path) -> None:
    done = run(config(world, tmp_path / "run", prompts=words, mode="rubric", answers=3, context=Context(kind="none")))
    assert done["calls"] == 3 * 8 - done["empty"]
    assert (done["flip_rate"], done["slot_a"], done["accuracy_verdicts"]) == (None, None, None)


def test_another_model_may_judge_and_caption(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = load.load_model, list[str]()

    def load_model(name: str, *given: Any, **more: Any) -> Any:
        loaded.append(str(name))
        return real(name, *given, **more)

    monkeypatch.setattr(cast, "load_model", load_model)
    run(config(world, tmp_path / "run", judge=Judge(model=other(world, tmp_path), max_tokens=4)))
    assert [Path(name).name for name in loaded] == ["model", "other"]
    loaded.clear()
    context = TINY.model_copy(update={"captioner": "judge"})
    run(config(world, tmp_path / "two", judge=Judge(model=other(world, tmp_path), max_tokens=4), context=context))
    assert [Path(name).name for name in loaded] == ["model", "other"]


def other(world: World, folder: Path) -> str:
    """The same network in a folder of its own."""
    if not (folder / "other").exists():
        model = load.load_model(world.model)
        with torch.no_grad():
            next(model.net.parameters()).mul_(1.5)
        model.save(folder / "other")
    return str(folder / "other")


def test_a_prompt_beyond_the_model_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit the model") as caught:
        run(config(world, tmp_path / "run", judge=Judge(max_tokens=4090)))
    assert "--judge.frames" in caught.value.fix
    assert len(read_jsonl(tmp_path / "run" / "asked" / "policy.jsonl")) == 8, "nothing that was made is lost"


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(world: World, tmp_path: Path, death: Death) -> None:
    whole, cut = config(world, tmp_path / "whole"), config(world, tmp_path / "cut")
    run(whole)
    killed("longtake.recipes.judge", cut, death)
    run(cut)
    assert files(cut.out) == files(whole.out)
    assert summary(cut.out) == summary(whole.out)
    assert metrics(cut.out) == metrics(whole.out)


def test_what_is_done_is_not_done_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(config(world, tmp_path / "run"))
    monkeypatch.setattr(cast, "load_model", lambda *_: pytest.fail("it loads the model"))
    assert run(config(world, tmp_path / "run")) == want
    with pytest.raises(UserError, match="answers was 2, now 3"):
        run(config(world, tmp_path / "run", answers=3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"judge.workers": 3}, "no effect without an endpoint"),
        ({"judge.price": [1, 2]}, "no effect without an endpoint"),
        ({"judge.most_failed": 0.2}, "no effect without an endpoint"),
        ({"judge.temperature": None}, "null is for endpoints"),
        ({"judge.url": "http://x/v1"}, "give model too"),
        ({"judge.url": "localhost:8000", "judge.model": "m"}, "must begin with http"),
        ({"context.kind": "none", "context.clips": 2}, "no effect without a narrative"),
        ({"context.clips": 2, "context.clip_seconds": 10}, "exclude each other"),
        ({"answers": 3, "pairs": 4}, "3 answers make 3"),
        ({"judge.url": "http://x/v1", "judge.model": "m", "judge.price": [-1, 2]}, "not be below 0"),
    ],
)
def test_settings_without_effect_are_refused(given: dict[str, Any], said: str) -> None:
    told = [Given(name, value, "--x") for name, value in {"rows": "r.jsonl", "model": "m", **given}.items()]
    with pytest.raises((UserError, ValidationError), match=said):
        resolve(judge.Config, told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pair: '{narrative} {question} {first}'", "{second} is missing"),
        ("pair: '{question} {first} {second}'", "{narrative} is missing"),
        ("score: '{narrative} {question} {reply}'", "no slot is called {reply}"),
        ("pears: x", "did you mean pair"),
        ("caption: 7", "is no text"),
        ("- x", "no lines of"),
        ("pair: {", "cannot be read"),
    ],
)
def test_bad_prompts_are_refused(world: World, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        run(config(world, tmp_path / "run", prompts=tmp_path / "p.yaml"))
    assert said in str(caught.value)


def test_bad_files_are_refused(world: World, tmp_path: Path) -> None:
    human = write(tmp_path / "human.jsonl", [{"id": "x", "messages": []}])
    with pytest.raises(UserError, match="no pair"):
        run(config(world, tmp_path / "run", human=human))
    far = Judge(url="http://127.0.0.1:9/v1", model="j", key_file=tmp_path / "none")
    with pytest.raises(UserError, match="key cannot be read"):
        run(config(world, tmp_path / "two", judge=far))
