"""A family's network with prompts, features and what the trainer makes of answers, to hold vLLM against."""

from pathlib import Path

import torch
from tests.engines import wide
from tests.models import tiny

from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.records import Draw
from longtake.runtime.inputs import fill

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
GAP = 1e-4  # nats, float32, between vLLM's kernels and ours
LONGEST = 12
CONTEXT = 16384
FILMS = {"a": tiny.film(0, 128, 16, 8), "b": tiny.film(1, 4, 24, 16)}
DRAWS = [
    [Draw(1.0, 19), Draw(0.0, 1), Draw(0.5, 9)],
    [Draw(1.0, 3), Draw(2.0, 2**62 + 5), Draw(0.0, 2)],
    [Draw(1.0, 6)] * 3,
    [Draw(0.7, 8), Draw(1.0, 10), Draw(1.3, 11)],
]


class Case:
    """A family's network, some prompts and their features."""

    def __init__(self, family, folder, seed=0):
        self.family = family
        self.model = wide.model(folder / f"{family}-{seed}", family, seed)
        self.model.end_ids = tuple(range(30, 50))  # of several, so that some answers end
        if family == "qwen3":
            self.films, asked = {}, [(None, "Which cup?"), (None, "2 + 2?"), (None, "Who?"), (None, "Which cup of?")]
        else:
            with torch.no_grad():
                self.films = dict(zip(FILMS, self.model.encode(list(FILMS.values())), strict=True))
            asked = [("a", "Which cup?"), (None, "2 + 2?"), ("b", "Who?"), ("a", "And now?")]
        self.prompts = [self.prompt(film, text) for film, text in asked]

    def prompt(self, film, text):
        return self.model.prompt(tiny.ask(text), film and tiny.receipt(FILMS[film]), film)

    def features(self, handles):
        return [self.films[handle] for handle in handles]

    @torch.no_grad()
    def logprobs(self, group, heats):
        """[G][R] as the trainer sees them."""
        ids = [answer.ids for answer in group.answers]
        row = pack([group.prompt], [ids], [[[1.0] * len(own) for own in ids]])
        films = self.features([handle for handle in row.features if handle])
        embed_TE, deepstack = fill(self.model, row.ids_T, row.visual_T, films)
        hidden_TE = self.model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
        heat_R = torch.tensor([heat for heat, own in zip(heats, ids, strict=True) for _ in own])
        logits_RV = self.model.head(hidden_TE[row.predict_R]) / heat_R[:, None]
        found = logits_RV.log_softmax(-1).gather(1, row.target_R[:, None])[:, 0]
        return [one.tolist() for one in found.split([len(own) for own in ids])]

    def gap(self, groups, draws=DRAWS):
        """Most nats between the engine's log-probabilities and the trainer's."""
        return max(
            abs(got - want)
            for group, own in zip(groups, draws, strict=True)
            for answer, wants in zip(
                group.answers, self.logprobs(group, [d.temperature or 1.0 for d in own]), strict=True
            )
            for got, want in zip(answer.logprob, wants, strict=True)
        )
