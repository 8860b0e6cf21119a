"""LoRA and activated LoRA by hand: W x + s B A x, layer by layer, with weights that the caller holds."""

from contextlib import contextmanager

import torch


def owned(model, name="default"):
    """{layer: [A, B]} of one of a model's adapters, as leaves of their own."""
    found = {}
    for parameter, value in model.adapter.weights(name).items():
        layer = parameter.removeprefix("base_model.model.").rpartition(".lora_")[0]
        found.setdefault(layer, []).append(value.detach().clone().requires_grad_())
    return found


@contextmanager
def acting(model, weights, scale, first=0):
    """Inside, the layers have {layer: [A, B]} instead of the model's own (None: nothing), from place `first` on."""

    def adapted(base_layer, a_rI, b_Or):
        def forward(x):
            on_T1 = (torch.arange(x.shape[-2]) >= first)[:, None]
            return base_layer(x) + on_T1 * (scale * (x @ a_rI.T @ b_Or.T))

        return forward

    layers = {name: model.net.get_submodule(name) for name in model.adapter.layers} if model.adapter else {}
    try:
        for name, layer in layers.items():
            layer.forward = adapted(layer.base_layer, *weights[name]) if weights else layer.base_layer.forward
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)
