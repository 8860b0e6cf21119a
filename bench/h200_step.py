"""A step on one film in every mode of the GPU benchmark, its seconds by phase.

    encode_once         a row of its own for every answer, through transformers' sdpa and activation checkpointing, on
                        features that were encoded once (MR-SP stage 1, LongVILA-R1)
    exact               one prefix forward whose graph is kept, answers on its keys and values, one backward through it
    exact_layers        the same, keeping layers' inputs alone: each layer is computed again in the backward
    exact_attention     the same, keeping what attention gave as well, which is then not computed again
    exact_host          the same as exact_layers, keeping the inputs in the host's memory
    no_prefix_gradient  answers learn on the prefix's keys and values, no gradient goes through the prefix
    alora               an adapter on answer tokens only, on keys and values that an earlier step left behind

R answer tokens, G answers, T tokens of a row, E model width, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from bench.h200_net import Clock, Net, Scene
from longtake.engines.decode import Decode
from longtake.engines.graph import Disagreement, Step, recorder_for
from longtake.maths.algorithms import ALGORITHMS
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack, stem
from longtake.models import attention as registered
from longtake.records import AnswerRow
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import Keep, Prefill, extend, finish, prefill

KEEPS: dict[str, Keep] = {
    "exact": "graph",
    "exact_layers": "layers",
    "exact_attention": "attention",
    "exact_host": "host",
    "no_prefix_gradient": "nothing",
    "alora": "nothing",
}
MODES = ("encode_once", *KEEPS)
LOSS = ALGORITHMS["longtake"].loss
NORM = 1.0
ON_DEVICE = ("position_3A", "target_R", "weight_R", "old_logprob_R", "answer_R")


@dataclass(frozen=True, slots=True)
class Took:
    """One update. Example: Took({"prefill": 1.0, "answers": 2.0, "optimizer": 0.1}, 0.7, 8)."""

    phases: dict[str, float]  # seconds
    norm: float  # of the gradient: modes that are the same in exact arithmetic agree on it
    answers: int  # that were run; where fewer than G, the time of all is extrapolated


def compute(here: Scene, keep: Keep) -> Prefill:
    """The prefix; by the base model alone under an activated LoRA."""
    net, row = here.net, stem(here.row)
    row = replace(row, position_3T=row.position_3T.to(net.device), visual_T=row.visual_T.to(net.device))
    inputs = partial(fill, net, row.ids_T, row.visual_T, [here.features])
    with net.adapter.off() if net.adapter is not None and net.adapter.kind == "alora" else nullcontext():
        return prefill(net, row, inputs, keep)


def learn_answers(here: Scene, made: Prefill, answer_tokens: int) -> None:
    """Forward and backward of all answers on a prefix, at most `answer_tokens` at once."""
    parts = [_moved(part, here.net.device) for part in answer_rows(here.row, answer_tokens)]
    for part in parts:
        hidden_RE = extend(here.net, made, part, once=len(parts) == 1)
        logprob_R = score_tokens(here.net.head, hidden_RE, part.target_R).logprob_R
        LOSS(logprob_R, logprob_R.detach(), part.weight_R, part.answer_R).total.backward()


def _moved(row: AnswerRow, device: torch.device) -> AnswerRow:
    return replace(row, **{name: getattr(row, name).to(device) for name in ON_DEVICE})


def step(here: Scene, mode: str, answer_tokens: int, limit: float = inf) -> Took:
    """One update; `limit`: see `rows`."""
    clock, count = Clock(here.net.device), len(here.answers)
    here.net.acting("alora" if mode == "alora" else "lora")
    if mode == "encode_once":
        count = rows(here, clock, limit)
    else:
        with clock("prefill"):
            made = compute(here, KEEPS[mode])
        with clock("answers"):
            learn_answers(here, made, answer_tokens)
        if made.keep != "nothing":
            with clock("prefix_backward"):
                finish(here.net, made)
    with clock("optimizer"):
        learned = [p for p in here.learned if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(learned, NORM))
        here.optimizer.step()
        here.optimizer.zero_grad(set_to_none=True)
    return Took(clock.seconds, norm, count)


@contextmanager
def as_transformers(net: Net) -> Iterator[None]:
    """The decoder under transformers' own attention and activation checkpointing."""
    net.text.set_attn_implementation("sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that all versions know
        net.text.gradient_checkpointing_enable({"use_reentrant": False})
        net.text.train()
        try:
            yield
        finally:
            net.text.eval()
            net.text.gradient_checkpointing_disable()
            net.text.set_attn_implementation(registered.TEXT)


def rows(here: Scene, clock: Clock, limit: float = inf) -> int:
    """A row and a backward for every answer. After `limit` seconds no other is begun, and the time of all is that of
    those run times G / run: as long as the last one, they cost the same. Returns how many were run.
    """
    count = 0
    with as_transformers(here.net):
        for answer, weight in zip(here.answers, here.weights, strict=True):
            with clock("policy"):
                _one_row(here, answer, weight)
            count += 1
            if clock.seconds["policy"] > limit:
                break
    clock.seconds["policy"] *= len(here.answers) / count
    return count


def _one_row(here: Scene, answer: list[int], weight: list[float]) -> None:
    net, device = here.net, here.net.device
    row = pack([here.prompt], [[answer]], [[weight]])
    embed_TE, _ = fill(net, row.ids_T, row.visual_T.to(device), [here.features])
    out: Tensor = net.text(
        inputs_embeds=embed_TE[None], position_ids=row.position_3T[:, None].to(device), use_cache=False
    ).last_hidden_state
    logprob_R = score_tokens(net.head, out[0, row.predict_R.to(device)], row.target_R.to(device)).logprob_R
    LOSS(logprob_R, logprob_R.detach(), row.weight_R.to(device), row.answer_R.to(device)).total.backward()


@torch.no_grad()
def generate(here: Scene, clock: Clock) -> list[str]:
    """Greedy answers of full length, on a prefix that is computed for them; returns what is to be said of it."""
    net, group, length, said = here.net, len(here.answers), len(here.answers[0]), list[str]()
    net.acting("lora")
    with clock("prefill"):
        made = compute(here, "nothing")
    starts = [int(here.prompt.position_3P.max()) + 1] * group
    while True:
        recorder, at = recorder_for(net), clock.now()
        decode = Decode([made], group, length, static=recorder is not None)
        next_token = Step(net, decode, starts, recorder, said.append)
        logits_GV = net.head(made.tips_NE.to(net.text.dtype)).repeat_interleave(group, 0)
        try:
            for left in range(length - 2, -1, -1):
                logits_GV = next_token(logits_GV.argmax(-1), left)
        except Disagreement:  # from now on without a recorder
            continue
        clock.seconds["generate"] = clock.now() - at
        return said
