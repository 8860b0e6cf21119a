"""Checks the shapes in the signatures of longtake.maths whenever they are called from here on (jaxtyping, beartype).

The package names jaxtyping in annotations only, so the names are put in place before its functions are decorated.
"""

import inspect

import jaxtyping
import torch
from beartype import beartype

from longtake.maths import advantage, attention, decode, dense, kernels, logprob, loss, ppo, reward, varlen
from longtake.records import Layout

NAMES = {"Tensor": torch.Tensor, "Layout": Layout} | {
    name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int")
}

for module in (advantage, attention, decode, dense, kernels, logprob, loss, ppo, reward, varlen):
    vars(module).update({name: value for name, value in NAMES.items() if name not in vars(module)})
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            setattr(module, name, jaxtyping.jaxtyped(function, typechecker=beartype))
