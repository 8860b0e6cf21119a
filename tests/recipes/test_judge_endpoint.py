"""Judged by an endpoint: order-consistent pairs are kept, whatever goes wrong is counted, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from tests.endpoint import Reply, Request, endpoint, refuses, says, silent, text_of
from tests.recipes.judges import PATIENCE, TINY, about, config, fair, files, run, shown
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, summary

from longtake.data.pairs import read_pairs
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.log.files import write_jsonl
from longtake.train import asking, distant
from longtake.train.judge_settings import Context, Judge

QUESTIONS, VERDICTS = 8, 16
DEATHS = [
    Death("longtake.train.asking:append_jsonl", 4),
    Death("longtake.train.asking:append_jsonl", 20),
    Death("longtake.train.asking:append_jsonl", 30),
    Death("longtake.recipes.judge:write_jsonl", 2),
    Death("longtake.recipes.judge:finish", 1),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.engines.remote.FIRST_WAIT", 0.01)


def test_both_orders_are_asked_and_agree(world: World, tmp_path: Path) -> None:
    second = Event()  # the first request waits for another beside it
    with endpoint(lambda r, number: (second.wait(9) if number == 0 else second.set(), fair(r))[1]) as there:
        done = run(config(world, tmp_path / "run", there.url))
    assert len(there.requests) == VERDICTS
    orders = {shown(request) for request in there.requests}
    assert {(second, first) for first, second in orders} == orders
    assert 1 < there.most <= 4
    assert (done["pairs"], done["kept"], done["flip_rate"], done["slot_a"]) == (8, 8, 0.0, 0.5)
    pairs = read_pairs(tmp_path / "run" / "pairs.jsonl")
    assert [pair.id for pair in pairs] == [f"q{n}#0" for n in range(QUESTIONS)]
    for pair in pairs:
        assert pair.chosen < pair.rejected
        assert pair.source == "judge"
        assert pair.scores is pair.margin is None
        assert Path(pair.question.video or "").samefile(world.film(int(pair.question.id[1:])))
    row = read_jsonl(tmp_path / "run" / "pairs.jsonl")[0]
    assert {one["order"] for one in row["verdicts"]} == {"AB", "BA"}
    assert {one["said"] for one in row["verdicts"]} == {"A", "B"}
    assert [(clip["start"], clip["stop"]) for clip in row["narrative"]] == [(0.0, 4.0), (4.0, 8.0)]
    assert len(row["receipt"]["indices"]) == 4
    assert (done["calls"], done["retries"], done["failures"]) == (2 * QUESTIONS + VERDICTS, 0, {})
    assert (done["requests"], done["cost"]) == (VERDICTS, None)


def test_the_judge_sees_frames_narrative_question_and_answers(world: World, tmp_path: Path) -> None:
    judge = Judge(url="http://x", model="judge-1", frames=3, temperature=None)
    with endpoint(fair) as there:
        given = judge.model_copy(update={"url": there.url})
        run(config(world, tmp_path / "run", judge=given))
    request = there.requests[0]
    parts = request["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", *["image_url"] * 3, "text"]
    assert parts[0]["text"] == "A video, shown by 3 of its frames, at 1.3, 4.0, 6.6 seconds:"
    told = read_jsonl(tmp_path / "run" / "narratives.jsonl")
    assert len(told) == QUESTIONS
    assert any(f"0.0 to 4.0 seconds: {film['clips'][0]['caption']}\n4.0 to 8.0" in text_of(request) for film in told)
    assert "temperature" not in request
    answers = [said["text"] for row in read_jsonl(tmp_path / "run" / "asked" / "policy.jsonl") for said in row["said"]]
    assert len(answers) == 2 * QUESTIONS
    assert not any("<|" in text for one in there.requests for text in shown(one))
    assert any("<|" in text for text in answers), "an untrained model says such things"


def test_without_context_no_caption_is_made(world: World, tmp_path: Path) -> None:
    with endpoint(fair) as there:
        done = run(config(world, tmp_path / "run", there.url, context=Context(kind="none")))
        run(config(world, tmp_path / "told", there.url))
    assert (done["context"], done["calls"]) == ("none", VERDICTS)
    assert read_jsonl(tmp_path / "run" / "narratives.jsonl") == []
    assert not any("described part by part" in text_of(request) for request in there.requests[:VERDICTS])
    with_context = [row["answers"] for row in read_jsonl(tmp_path / "told" / "judged.jsonl")]
    assert with_context == [row["answers"] for row in read_jsonl(tmp_path / "run" / "judged.jsonl")]


def test_a_judge_that_always_says_a_keeps_nothing(world: World, tmp_path: Path) -> None:
    with endpoint(lambda *_: says("Output A is better.")) as there:
        done = run(config(world, tmp_path / "run", there.url))
    assert (done["ok"], done["kept"], done["flipped"], done["flip_rate"], done["slot_a"]) == (False, 0, 8, 1.0, 1.0)
    assert done["why"].startswith("the judge kept none of 8 pairs: 8 flipped, 0 ties, ")
    assert done["why"].endswith("it named slot A in 100% of its verdicts")
    assert read_jsonl(tmp_path / "run" / "pairs.jsonl") == []
    judged = read_jsonl(tmp_path / "run" / "judged.jsonl")
    assert [row["outcome"] for row in judged] == ["flipped"] * 8
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


def test_ties_and_babble_are_counted(world: World, tmp_path: Path) -> None:
    def mixed(request: Request, _: int) -> Reply:
        return says("tie") if about(request, "ball") else says("hm") if about(request, "flash") else fair(request)

    with endpoint(mixed) as there:
        done = run(config(world, tmp_path / "run", there.url))
    rows = read_jsonl(tmp_path / "run" / "judged.jsonl")
    asked = [row["question"] for row in rows]
    want = ["tie" if "ball" in text else "unparsable" if "flash" in text else "kept" for text in asked]
    assert [row["outcome"] for row in rows] == want
    counts = [want.count(name) for name in ("kept", "tie", "unparsable")]
    assert [done["kept"], done["ties"], done["unparsable"]] == counts
    assert min(counts) > 0


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        (refuses(429, Retry_After="0.01"), "429"),
        (refuses(500), "500"),
        (Reply(body="{"), "garbage"),
        (Reply(), "empty"),
    ],
    ids=["429", "500", "garbage", "empty"],
)
def test_every_request_fails_once(world: World, tmp_path: Path, trouble: Reply, name: str) -> None:
    seen: set[str] = set()

    def stumbles(request: Request, _: int) -> Reply:
        text = str(shown(request))
        if text in seen:
            return fair(request)
        seen.add(text)
        return trouble

    with endpoint(stumbles) as there:
        done = run(config(world, tmp_path / "run", there.url))
    assert (done["kept"], done["failed"], done["requests_failed"]) == (8, 0, 0)
    assert done["failures"] == {name: VERDICTS}
    assert (done["retries"], len(there.requests)) == (VERDICTS, 2 * VERDICTS)


def half(request: Request, _: int = 0) -> Reply:
    """Fails wherever a flash is asked about: two of the eight questions."""
    return refuses(500, "out of order") if about(request, "flash") else fair(request)


def test_a_few_failures_are_counted_and_many_end_the_run(world: World, tmp_path: Path) -> None:
    with endpoint(half) as there:
        with pytest.raises(UserError) as caught:
            run(config(world, tmp_path / "run", there.url))
        error, allowed = caught.value, Judge(url=there.url, model="judge-1", retries=0, most_failed=0.25)
        done = run(config(world, tmp_path / "allowed", judge=allowed))
    assert (error.what, error.where) == ("4 of 16 requests failed", there.url)
    assert error.why == "the last: 500: out of order"
    saved = read_json(tmp_path / "run" / "summary.json")
    assert (saved["ok"], saved["failed"], saved["kept"], saved["failures"]) == (False, 2, 6, {"500": 8})
    assert len(read_pairs(tmp_path / "run" / "pairs.jsonl")) == 6
    rows = read_jsonl(tmp_path / "run" / "judged.jsonl")
    assert sum(row["outcome"] == "failed" and bool(row["verdicts"][0]["error"]) for row in rows) == 2
    assert (done["failed"], done["kept"], done["failures"]) == (2, 6, {"500": 4})


def test_run_again_asks_only_what_failed(world: World, tmp_path: Path) -> None:
    mended = False
    with endpoint(lambda request, _: fair(request) if mended else half(request)) as there:
        with pytest.raises(UserError, match="4 of 16 requests failed"):
            run(config(world, tmp_path / "cut", there.url))
        mended = True
        before = len(there.requests)
        done = run(config(world, tmp_path / "cut", there.url))
        assert [about(request, "flash") for request in there.requests[before:]] == [True] * 4
        run(config(world, tmp_path / "whole", there.url))
    assert (done["kept"], done["failed"], done["requests_failed"], done["failures"]) == (8, 0, 0, {"500": 8})
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_failures_may_be_allowed_after_the_fact(world: World, tmp_path: Path) -> None:
    with endpoint(half) as there:
        with pytest.raises(UserError, match="4 of 16 requests failed"):
            run(config(world, tmp_path / "run", there.url))
        patient = Judge(url=there.url, model="judge-1", workers=4, retries=0, timeout=PATIENCE, most_failed=0.25)
        assert run(config(world, tmp_path / "run", judge=patient))["kept"] == 6


def test_an_endpoint_that_is_gone_is_left_alone(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distant, "GIVE_UP", 5)
    written = asking.append_jsonl
    monkeypatch.setattr(asking, "append_jsonl", lambda *row: (Event().wait(0.1), written(*row)))  # a slow disk
    with endpoint(lambda *_: refuses(503, "loading")) as there, pytest.raises(UserError) as caught:
        run(config(world, tmp_path / "run", there.url))
    assert caught.value.what == "the endpoint does not answer"
    assert caught.value.why == "5 requests in a row failed, the last with 503: loading"
    assert len(there.requests) <= 2 * (5 + 3)  # both tries of five that failed and of three on their way
    assert read_json(tmp_path / "run" / "summary.json")["failed"] == 8
    assert len(read_jsonl(tmp_path / "run" / "judged.jsonl")) == 8


def test_silence_is_a_failure(world: World, tmp_path: Path) -> None:
    quick = Judge(url="http://x", model="judge-1", workers=16, retries=0, timeout=0.2, most_failed=1.0)
    with silent() as there:
        done = run(config(world, tmp_path / "run", judge=quick.model_copy(update={"url": there.url})))
    assert (done["ok"], done["failed"], done["failures"]) == (False, 8, {"timeout": VERDICTS})


def test_a_wrong_key_ends_the_run_at_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    with endpoint(lambda *_: refuses(401, "invalid key")) as there:
        keyed = Judge(url=there.url, model="judge-1", key_file=tmp_path / "key", workers=1)
        with pytest.raises(UserError, match="another key"):
            run(config(world, tmp_path / "run", judge=keyed))
    assert [request["key"] for request in there.requests] == ["Bearer s3cret"]
    assert "s3cret" not in (tmp_path / "run" / "run.json").read_text()


def test_costs_are_counted(world: World, tmp_path: Path) -> None:
    with endpoint(fair) as there:
        priced = Judge(url=there.url, model="judge-1", price=(2.0, 10.0))
        done = run(config(world, tmp_path / "run", judge=priced))
    assert done["cost"] == pytest.approx(VERDICTS * (100 * 2.0 + 7 * 10.0) / 1e6)
    assert done["tokens_in"] > VERDICTS * 100, "captions of the model here are counted, at no price"


def test_the_judge_may_caption_too(world: World, tmp_path: Path) -> None:
    def both(request: Request, _: int) -> Reply:
        return says("a red cup") if text_of(request).startswith("Describe") else fair(request)

    context = TINY.model_copy(update={"captioner": "judge"})
    with endpoint(both) as there:
        done = run(config(world, tmp_path / "run", there.url, context=context))
    assert (done["requests"], done["kept"]) == (2 * QUESTIONS + VERDICTS, 8)
    captions = {clip["caption"] for row in read_jsonl(tmp_path / "run" / "narratives.jsonl") for clip in row["clips"]}
    assert captions == {"a red cup"}
    asking = [request for request in there.requests if text_of(request).startswith("Describe")]
    assert not any("response_format" in request for request in asking)


def test_scores_make_pairs_with_margins(world: World, tmp_path: Path) -> None:
    def scores(request: Request, _: int) -> Reply:
        text = text_of(request).split("\n\nAnswer:\n")[1].split("\n\n5 is right")[0]
        return says(f'{{"reasoning": "…", "score": {1 + len(text) % 5}}}')

    with endpoint(scores) as there:
        done = run(config(world, tmp_path / "run", there.url, mode="rubric", answers=3, pairs=3))
    texts = [said["text"] for row in read_jsonl(tmp_path / "run" / "asked" / "policy.jsonl") for said in row["said"]]
    assert len(there.requests) == sum(map(bool, texts)) == 3 * QUESTIONS - done["empty"], "every answer once"
    assert done["kept"] + done["ties"] == done["pairs"] > 2 * QUESTIONS
    assert (done["flip_rate"], done["slot_a"]) == (None, None)
    pairs = read_pairs(tmp_path / "run" / "pairs.jsonl")
    assert len(pairs) == done["kept"] > 0
    for pair in pairs:
        assert pair.scores is not None
        assert pair.margin == pair.scores[0] - pair.scores[1] > 0
        assert pair.scores[0] == 1 + len(pair.chosen) % 5 or "<|" in pair.chosen


def test_pairs_of_people_stand_beside(world: World, tmp_path: Path) -> None:
    content = [{"type": "video", "video": str(world.film(0))}, {"type": "text", "text": "?"}]
    prompt = [{"role": "user", "content": content}]
    told = [{"role": "assistant", "content": text} for text in ("left", "right")]
    row = {
        "id": "h",
        "prompt": prompt,
        "chosen": told[:1],
        "rejected": told[1:],
        "score_chosen": 4,
        "score_rejected": 1,
    }
    other = {**row, "id": "i", "source": "anna", "chosen": told[1:], "rejected": told[:1]}
    write_jsonl(tmp_path / "human.jsonl", [row, other])
    with endpoint(fair) as there:
        done = run(config(world, tmp_path / "run", there.url, human=tmp_path / "human.jsonl"))
    assert (done["kept"], done["human"], done["written"]) == (8, 2, 10)
    pairs = read_pairs(tmp_path / "run" / "pairs.jsonl")
    assert [pair.source for pair in pairs] == ["judge"] * 8 + ["human", "anna"]
    assert (pairs[8].chosen, pairs[8].margin) == ("left", 3.0)


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    with endpoint(fair) as there:
        made = config(world, tmp_path_factory.mktemp("whole") / "run", there.url)
        run(made)
    return made.out


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(world: World, tmp_path: Path, whole: Path, death: Death) -> None:
    with endpoint(fair) as there:
        cut = config(world, tmp_path / "cut", there.url)
        killed("longtake.recipes.judge", cut, death)
        run(cut)
    assert files(cut.out) == files(whole)
    assert summary(cut.out) == summary(whole)
    assert metrics(cut.out) == metrics(whole)
