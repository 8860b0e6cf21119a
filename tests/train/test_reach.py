"""Prompts beyond the context are refused before a run begins: as if each were measured alone, at every limit."""

import gc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram

from longtake.errors import UserError
from longtake.models.context_file import Kept
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3_vl import Qwen3VL
from longtake.records import FramePolicy, Question, Receipt, Span
from longtake.runtime.films import Look
from longtake.train import reach
from longtake.train.turns import tokens_of

WORDS = tiny.tokenizer()
MODELS = {
    "qwen3_vl": Qwen3VL(tiny.network(WORDS), WORDS, tiny.PIXELS),
    "qwen2_5_vl": Qwen25VL(tiny.network_2_5(WORDS), WORDS, tiny.PIXELS),
}


class Films:
    """Films of (frames, width, seconds from frame to frame, first second) by the looks at them."""

    def __init__(self, model, seen):
        self.model, self.seen = model, seen
        self.made = []

    def receipt(self, look):
        if look.question.video is None:
            return None
        frames, width, apart, first = self.seen[look.question.id]
        receipt = tiny.receipt(np.zeros((frames, 8, width, 3), np.uint8), apart)
        return replace(receipt, seconds=tuple(first + second for second in receipt.seconds))

    def told(self, look):
        return look.question

    def prompt(self, look):
        self.made.append(look.question.id)
        return self.model.prompt(look.question, self.receipt(look), None)


def looks(texts, blind=()):
    return [
        Look(Question(f"q{n}", None if n in blind else f"{n}.mp4", text), FramePolicy(frames=2))
        for n, text in enumerate(texts)
    ]


def needed(films, look, answer):
    return int(films.prompt(look).position_3P.max()) + 1 + answer


def refused(films, asked, answers):
    try:
        reach.check_fits(films, asked, lambda question: answers[question.id])
    except UserError as error:
        return error
    return None


FILM = st.tuples(
    st.sampled_from([2, 4, 6]), st.sampled_from([8, 16]), st.sampled_from([0.1, 3.0, 40.0]),
    st.sampled_from([0.0, 9.0, 4000.0]),
)  # fmt: skip


@pytest.mark.parametrize("family", list(MODELS))
@given(
    rows=st.lists(st.tuples(FILM, st.text("ab é?\u0958", max_size=60), st.integers(0, 40)), min_size=1, max_size=6),
    short=st.integers(0, 3),
    who=st.integers(0, 5),
)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_the_bound_refuses_what_each_alone_does(family, rows, short, who):
    model = MODELS[family]
    films = Films(model, {f"q{n}": film for n, (film, _, _) in enumerate(rows)})
    asked = looks([text for _, text, _ in rows], blind={0} if short == 3 else ())
    answers = {f"q{n}": answer for n, (_, _, answer) in enumerate(rows)}
    ends = [needed(films, look, answers[look.question.id]) for look in asked]
    model.net.config.text_config.max_position_embeddings = limit = ends[who % len(ends)] - (short == 1)
    error = refused(films, asked, answers)
    assert (error is None) == (max(ends) <= limit)
    if error is not None:
        named = int(error.where.removeprefix("question q"))
        assert ends[named] > limit
        assert f"position {ends[named]}, the model knows {limit}" in error.why


@pytest.mark.parametrize(
    ("family", "first", "second", "texts"),
    [
        ("qwen3_vl", (2, 8, 0.1, 0.0), (2, 8, 0.1, 0.0), ("?", "?" * 50)),
        ("qwen3_vl", (6, 8, 0.1, 0.0), (6, 8, 0.1, 4000.0), ("?", "?")),  # longer numbers in the text
        ("qwen2_5_vl", (6, 8, 0.1, 4000.0), (6, 8, 40.0, 0.0), ("?", "?")),  # positions that tell the time
        ("qwen3_vl", (2, 8, 3.0, 1.0), (6, 8, 0.1, 0.0), ("?", "?")),
        ("qwen3_vl", (2, 8, 3.0, 1.0), (2, 32, 0.1, 0.0), ("?", "?")),
    ],
)
def test_the_widest_of_all_is_found(family, first, second, texts):
    model = MODELS[family]
    films, asked = Films(model, {"q0": first, "q1": second}), looks(texts)
    low, high = (needed(films, look, 0) for look in asked)
    assert low < high
    model.net.config.text_config.max_position_embeddings = high - 1
    error = refused(films, asked, {"q0": 0, "q1": 0})
    assert error is not None
    assert error.where == "question q1"


def test_far_below_the_limit_one_prompt_of_a_size_is_made():
    model = MODELS["qwen3_vl"]
    model.net.config.text_config.max_position_embeddings = 4096
    films = Films(model, {f"q{n}": (4, 8, 1.0, 0.0) for n in range(50)})
    reach.check_fits(films, looks(["what?"] * 50), lambda question: 100)
    assert films.made == []


def test_receipts_are_read_once_a_film_and_not_kept():
    """One names all its frames: for every row of a long file they would be gigabytes."""
    model = MODELS["qwen3_vl"]
    model.net.config.text_config.max_position_embeddings = 10**6
    films = Films(model, {f"q{n}": (4, 8, 1.0 + n % 7, float(n)) for n in range(60)})
    read, held = [], []
    receipt = films.receipt
    films.receipt = lambda look: read.append(look.question.id) or receipt(look)

    def asked():
        for look in looks(["what?"] * 60):
            yield look
            yield replace(look, question=replace(look.question, text="and what else?"))
            held.append(sum(type(x) is Receipt for x in gc.get_objects()))

    before = sum(type(x) is Receipt for x in gc.get_objects())
    reach.check_fits(films, asked(), lambda question: 100)
    assert read == [f"q{n}" for n in range(60)]
    assert max(held) - before <= 3


SPIECE = Tokenizer(Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("é", -2.0)], 0, byte_fallback=False))
SPIECE.normalizer = normalizers.NFKC()
SPIECE.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
COMPOSED = Tokenizer(BPE())
COMPOSED.normalizer = normalizers.NFC()
COMPOSED.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
COMPOSED.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=ALPHABET, show_progress=False))
BYTES = {f"<0x{n:02X}>": n for n in range(256)}
LLAMA = Tokenizer(BPE(BYTES | {"▁": 256, "a": 257}, [], byte_fallback=True))
LLAMA.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {"unigram": SPIECE, "byte level": COMPOSED, "byte fallback": LLAMA}


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@given(text=st.text(st.sampled_from("ab \n?é\u0301\u0344\u0958\ufdfa\U0001d160中🙂")))
@settings(derandomize=True, database=None, deadline=None)
def test_no_tokenizer_makes_more_of_a_text(kind, text):
    words = TOKENIZERS[kind]
    words.add_special_tokens(["<s>"])
    for told in (text, f"<s>{text}", f"{text}<s>{text}"):
        assert len(words.encode(told, add_special_tokens=False).ids) <= reach.most_tokens(told)


def test_the_bound_is_needed():
    """Two of these characters become six bytes each where they had three, four bytes become twelve."""
    for text in ("\u0958" * 20, "\U0001d160" * 20):
        assert len(COMPOSED.encode(text, add_special_tokens=False).ids) > len(text.encode()) + reach.MARK


def test_written_answers_are_counted_only_where_their_bound_does_not_fit(monkeypatch):
    model, counted = MODELS["qwen3_vl"], []
    films, asked = Films(model, {}), looks(["?", "?"], blind={0, 1})

    def count(tokenizer, end, spans):
        counted.append(spans)
        return tokens_of(tokenizer, end, spans)

    monkeypatch.setattr(reach, "tokens_of", count)
    short, other, long = (Span("user " * 5),), (Span("no"),), (Span("user "), Span("user " * 39))
    answers = [("q0", short), ("q1", long), ("q1", other)]
    given = reach.written(WORDS, WORDS.eos_token_id, answers, more=2)
    exact = len(tokens_of(WORDS, WORDS.eos_token_id, long)[0]) + 2
    assert exact < 200 < given.most(asked[1].question)
    end = needed(films, asked[1], exact)
    films.made.clear()
    model.net.config.text_config.max_position_embeddings = 4096
    reach.check_fits(films, asked, given)
    assert not counted
    model.net.config.text_config.max_position_embeddings = end
    reach.check_fits(films, asked, given)
    assert counted == [long, other]
    assert films.made == ["q1"]
    model.net.config.text_config.max_position_embeddings = end - 1
    with pytest.raises(UserError) as caught:
        reach.check_fits(films, asked, given)
    assert caught.value.where == "question q1"
    assert f"an answer of {exact} " in caught.value.why


def test_an_end_token_is_in_the_bound_and_conversations_are_counted():
    """A template writes more between two answers than their texts have."""
    spans = (Span("a"), Span("b", 0.0, "user"), Span("c"))
    given = reach.written(WORDS, WORDS.eos_token_id, [("one", (Span("a"),)), ("two", spans)], more=2)
    one, two = (Question(name, None, "?") for name in ("one", "two"))
    assert given.most(one) == 1 + reach.MARK + 1 + 2
    assert given.most(two) == given(two) == len(tokens_of(WORDS, WORDS.eos_token_id, spans)[0]) + 2
    assert given(two) > sum(reach.most_tokens(span.text) for span in spans) + 2


def test_what_is_refused_says_what_to_do():
    model = MODELS["qwen3_vl"]
    model.net.config.text_config.max_position_embeddings = 100
    prompt = model.prompt(Question("q7", None, "a" * 20), None, None)
    with pytest.raises(UserError) as caught:
        reach.check_prompt(model, prompt, 250, "fewer --video.frames")
    assert caught.value.fix == "fewer --video.frames, or --context.rope linear:3"
    assert caught.value.where == "question q7"
    model.context = Kept(rope="linear:2")
    try:
        with pytest.raises(UserError) as caught:
            reach.check_prompt(model, prompt, 250, "fewer --video.frames")
        assert caught.value.fix == "fewer --video.frames", "positions are not scaled twice"
    finally:
        model.context = Kept()


def test_only_a_scale_of_ours_widens_the_context():
    """A checkpoint's own linear factor may be counted in its longest input already, as LongVILA-1M's is."""
    model = Qwen3VL(tiny.network(WORDS), WORDS, tiny.PIXELS)
    text = model.net.config.text_config
    text.max_position_embeddings = 100
    text.rope_parameters = {**text.rope_parameters, "rope_type": "linear", "factor": 4.0}
    films, asked = Films(model, {}), looks(["a" * 20], blind={0})
    with pytest.raises(UserError) as caught:
        reach.check_fits(films, asked, lambda question: 250, "shorter answers")
    assert caught.value.why.endswith("the model knows 100")
    assert caught.value.fix == "shorter answers", "its positions are scaled already"
    model.context = Kept(rope="linear:4")
    reach.check_fits(films, asked, lambda question: 250)
    with pytest.raises(UserError, match="does not fit") as caught:
        reach.check_prompt(model, films.prompt(asked[0]), 390, "shorter answers")
    assert caught.value.why.endswith("the model knows 400")
