"""A one-layer decoder in float64 for tests: positions enter the embedding, attention is given as a function."""

import torch


class Network:
    """Parameters from a seed; H = 4, K = 2, D = 4, E = 8, vocabulary 11."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "embed": (11, 8),
            "place": (3, 8),
            "q": (8, 16),
            "k": (8, 8),
            "v": (8, 8),
            "o": (16, 8),
            "head": (8, 11),
        }
        self.weights = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for name, shape in shapes.items()
        }

    def hidden(self, ids_T, position_3T, attend):
        """[T, E]; attend takes [1, heads, T, 4] q, k, v."""
        w = self.weights
        x = w["embed"][ids_T] + (position_3T.T.double() @ w["place"]).sin()
        q, k, v = ((x @ w[name]).unflatten(-1, (-1, 4)).transpose(0, 1)[None] for name in "qkv")
        return x + attend(q, k, v)[0].transpose(0, 1).flatten(1) @ w["o"]

    def head(self, hidden):
        return hidden @ self.weights["head"]
