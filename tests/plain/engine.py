"""The slowest engine there is: no key or value is kept, every token reads its whole row again. Float32 or float64."""

import numpy as np
import torch

from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.records import Answer, Group
from longtake.runtime.inputs import fill


class PlainEngine:
    """Takes what LocalEngine takes: the model, a function from handles to features, the weights' version."""

    def __init__(self, model, features, weights):
        self.model, self.features, self.weights = model, features, weights

    @torch.no_grad()
    def generate(self, prompts, draws, max_tokens):
        """[N] groups; answer g of prompt n follows draws[n][g]."""
        return [
            Group(prompt, tuple(self.answer(prompt, draw, max_tokens) for draw in own))
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def answer(self, prompt, draw, max_tokens):
        chance = np.random.Generator(np.random.Philox(key=draw.seed)).random(max_tokens)
        ids, logprobs = [], []
        while len(ids) < max_tokens and not (ids and ids[-1] in self.model.end_ids):
            logits = self.logits(prompt, ids)
            ids.append(pick(logits, draw.temperature, chance[len(ids)]))
            logprobs.append((logits / (draw.temperature or 1.0)).log_softmax(-1)[ids[-1]].item())
        ended = ids[-1] in self.model.end_ids
        text = self.model.tokenizer.decode(ids[:-1] if ended else ids)
        return Answer(tuple(ids), tuple(logprobs), text, "stop" if ended else "length", draw.seed, self.weights)

    def logits(self, prompt, ids):
        """[V] after the prompt and the answer's tokens so far; the last token of a packed row is only predicted."""
        row = pack([prompt], [[[*ids, 0]]], [[[1.0] * (len(ids) + 1)]])
        films = self.features([handle for handle in row.features if handle is not None])
        embed_TE, deepstack = fill(self.model, row.ids_T, row.visual_T, films)
        hidden_TE = self.model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
        return self.model.head(hidden_TE[row.predict_R[-1:]])[0]


def pick(logits, temperature, chance):
    """The first token whose cumulative probability passes `chance`; at temperature 0 the likeliest."""
    if not temperature:
        return int(logits.argmax())
    passed = 0.0
    for token, share in enumerate((logits.double() / temperature).softmax(-1).tolist()):
        passed += share
        if passed > chance:
            return token
    return token
