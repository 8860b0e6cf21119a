"""Others' ways to make the same step, as fast as they can be made: what `exact` is measured against.

    per_answer        what TRL and Long-RL's Qwen path do: one row [prefix | answer] for every answer, through
                      transformers' forward with sdpa; the film goes through the vision tower again for every answer
    per_answer_3pass  the same for the old policy and the reference (without gradients) before the policy
    encode_once       MR-SP stage 1 (LongVILA-R1): as per_answer, but features are encoded once and reused
    prefix_grouper    the library of that name (0.0.1.post1) as its README says; features are encoded once

What was done for them: the rollout is longtake's own (one prefill, decoding on shared keys and values); the tower is
longtake's (its patch embedding is a matrix product, all frames in one call of the kernel: faster than transformers');
logits of answer tokens only, no padding and no mask, so that sdpa takes its fastest causal kernel; BATCH rows at once,
the fastest of 1, 2, 4 and 8. PrefixGrouper's README runs the head over the whole row and feeds the last answer token;
here it gets hidden states and neither, and its attention function calls sdpa without a mask over the prefix.

B rows, P prompt tokens, R answer tokens, T = P + R - 1, E model width, H heads, D head width, L feature levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.cpu_scene import LOSS, Clock, Scene, Took
from longtake.engines.local import LocalEngine
from longtake.maths.logprob import score_tokens
from longtake.maths.loss import kl_penalty
from longtake.models import attention as registered
from longtake.records import Features, Group

BATCH_TOKENS = 4608  # of rows that go through the network together: 8 at 512, 2 at 2k, 1 at 8k
BETA = 0.04  # of the KL term that the third pass is for (LongVILA-R1 trains with one)
GROUPER = "longtake_bench_prefix_grouper"


def rolled_out(scene: Scene, clock: Clock) -> Group:
    """Answers by longtake's engine, with nothing kept."""
    engine = LocalEngine(scene.model, scene.features, "bench")
    with clock("rollout"):
        (group,) = engine.generate([scene.prompt], [scene.draws], scene.answer)
    return group


@contextmanager
def implementation(scene: Scene, name: str) -> Iterator[None]:
    """The decoder under another attention function."""
    scene.model.net.set_attn_implementation({"text_config": name})
    yield
    scene.model.net.set_attn_implementation({"text_config": registered.TEXT})


def per_answer(scene: Scene) -> Took:
    """One pass, the film encoded for every row."""
    return _rows(scene, _encoded, passes=1)


def per_answer_3pass(scene: Scene) -> Took:
    """Three passes, the film encoded for every row of each."""
    return _rows(scene, _encoded, passes=3)


def encode_once(scene: Scene) -> Took:
    """One pass on stored features."""
    return _rows(scene, _stored, passes=1)


FeaturesOf = Callable[[Scene, int], list[Features]]


def _encoded(scene: Scene, rows: int) -> list[Features]:
    """The tower over the same film once a row."""
    assert scene.films is not None
    frames_FHWC = scene.films.frames(scene.look)
    with torch.no_grad():
        return scene.model.encode([frames_FHWC] * rows)


def _stored(scene: Scene, rows: int) -> list[Features]:
    assert scene.prompt.features is not None
    return scene.features([scene.prompt.features]) * rows


def _rows(scene: Scene, features: FeaturesOf, passes: int) -> Took:
    """The update of whole rows."""
    clock = Clock()
    group = rolled_out(scene, clock)
    answer_GR = torch.tensor([answer.ids for answer in group.answers])
    weight_GR = torch.tensor(scene.weights(group))
    old_GR = reference_GR = None
    with implementation(scene, "sdpa"):
        if passes == 3:
            with clock("old"), torch.no_grad():
                old_GR = torch.cat([_logprobs(scene, features, part) for part in _parts(scene, answer_GR)])
            with clock("reference"), torch.no_grad():
                reference_GR = torch.cat([_logprobs(scene, features, part) for part in _parts(scene, answer_GR)])
        with clock("policy"):
            start = 0
            for part_BR in _parts(scene, answer_GR):
                here = slice(start, start + len(part_BR))
                new_R = _logprobs(scene, features, part_BR).flatten()
                weight_R = weight_GR[here].flatten()
                owner_R = torch.arange(len(part_BR)).repeat_interleave(part_BR.shape[1])
                old_R = new_R.detach() if old_GR is None else old_GR[here].flatten()
                total = LOSS(new_R, old_R, weight_R, owner_R).total
                if reference_GR is not None:
                    total = total + kl_penalty(new_R, reference_GR[here].flatten(), torch.full_like(new_R, BETA))
                total.backward()
                start += len(part_BR)
    norm = scene.learn(clock)
    return Took(clock.seconds, clock.total - clock.seconds["rollout"], norm)


def _parts(scene: Scene, answer_GR: Tensor) -> tuple[Tensor, ...]:
    """Answers that go through the network together."""
    return answer_GR.split(max(1, BATCH_TOKENS // (len(scene.prompt.ids) + scene.answer)))


def _logprobs(scene: Scene, features: FeaturesOf, answer_BR: Tensor) -> Tensor:
    """[B, R] of answers, each in a row of its own."""
    model, prompt = scene.model, scene.prompt
    rows, fed = len(answer_BR), answer_BR[:, :-1]
    ids_BT = torch.cat([torch.tensor(prompt.ids).expand(rows, -1), fed], 1)
    visual_BT = ids_BT.new_zeros(ids_BT.shape, dtype=torch.bool)
    for start, stop in prompt.visual:
        visual_BT[:, start:stop] = True
    level_LNE = torch.cat([film.level_LNE for film in features(scene, rows)], 1)
    embed_BTE = model.net.model.language_model.embed_tokens(ids_BT)
    embed_BTE = embed_BTE.masked_scatter(visual_BT[..., None], level_LNE[0])
    hidden_BTE = model.net.model.language_model(
        inputs_embeds=embed_BTE,
        position_ids=_positions(scene)[:, None].expand(-1, rows, -1),
        visual_pos_masks=visual_BT,
        deepstack_visual_embeds=list(level_LNE[1:]),
        use_cache=False,
    ).last_hidden_state
    own_RE = hidden_BTE[:, len(prompt.ids) - 1 :].flatten(0, 1)
    return score_tokens(model.head, own_RE, answer_BR.flatten()).logprob_R.view_as(answer_BR)


def _positions(scene: Scene) -> Tensor:
    """[3, T] of a row."""
    position_3P = scene.prompt.position_3P
    after = int(position_3P.max()) + 1 + torch.arange(scene.answer - 1)
    return torch.cat([position_3P, after.expand(3, -1)], 1)


def prefix_grouper(scene: Scene) -> Took:
    """The library's shared-prefix forward and autograd's backward through it."""
    from prefix_grouper import PrefixGrouper
    from transformers import AttentionInterface

    AttentionInterface.register(GROUPER, _grouped)
    clock = Clock()
    group = rolled_out(scene, clock)
    model, prompt = scene.model, scene.prompt
    answer_GR = torch.tensor([answer.ids for answer in group.answers])
    with implementation(scene, GROUPER), clock("policy"):
        fed = answer_GR[:, :-1]
        seen, own = torch.ones(1, len(prompt.ids), dtype=torch.int64), torch.ones_like(fed)
        grouper = PrefixGrouper.from_ungrouped_masks(seen, own, len(fed), padding_mode="right")
        prefix_1PE, visual_P, deepstack = _prefix(scene)
        suffix_GRE = model.net.model.language_model.embed_tokens(fed)
        row_1TE = grouper.concat_input(prefix_1PE, seen, suffix_GRE, own)
        position_3T = torch.cat([prompt.position_3P] + [_positions(scene)[:, len(prompt.ids) :]] * len(fed), 1)
        visual_1T = torch.cat([visual_P, torch.zeros(fed.numel(), dtype=torch.bool)])[None]
        hidden_1TE = model.net.model.language_model(
            inputs_embeds=row_1TE,
            position_ids=position_3T[:, None],
            visual_pos_masks=visual_1T,
            deepstack_visual_embeds=deepstack,
            use_cache=False,
            prefix_grouper=grouper,
        ).last_hidden_state
        _, _, own_GRE, _ = grouper.split_output(hidden_1TE, include_prefix_last=1)
        new_R = score_tokens(model.head, own_GRE.flatten(0, 1), answer_GR.flatten()).logprob_R
        owner_R = torch.arange(len(fed)).repeat_interleave(answer_GR.shape[1])
        weight_R = torch.tensor(scene.weights(group)).flatten()
        LOSS(new_R, new_R.detach(), weight_R, owner_R).total.backward()
    norm = scene.learn(clock)
    return Took(clock.seconds, clock.total - clock.seconds["rollout"], norm)


def _prefix(scene: Scene) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings [1, P, E] with features in place, visual places [P], DeepStack levels."""
    ids_P = torch.tensor(scene.prompt.ids)
    visual_P = torch.zeros(len(ids_P), dtype=torch.bool)
    for start, stop in scene.prompt.visual:
        visual_P[start:stop] = True
    level_LNE = _stored(scene, 1)[0].level_LNE
    embed_PE = scene.model.embed(ids_P).masked_scatter(visual_P[:, None], level_LNE[0])
    return embed_PE[None], visual_P, list(level_LNE[1:])


def _grouped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix_grouper: Any, **other: Any
) -> tuple[Tensor, None]:
    """Attention as PrefixGrouper's README has it replaced: its own grouping around a plain function."""
    return prefix_grouper.forward(_plain, query, key, value, scale=other["scaling"]), None


def _plain(q: Tensor, k: Tensor, v: Tensor, padding: Tensor, scale: float) -> Tensor:
    """Causal attention [B, T, H, D] of the last tokens of a row without padding."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scaled_dot_product_attention(q, k, v, attn_mask=causal, scale=scale, enable_gqa=True).transpose(1, 2)
