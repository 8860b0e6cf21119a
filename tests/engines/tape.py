"""A CUDA graph's stand-in on the CPU: every operation is noted with its tensors and its numbers as they are, and run
again on the same tensors; what would make the host wait for a device is refused.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh")  # the last: a copy from the host


class _Watch(TorchDispatchMode):
    """Notes what runs, and what was in the tensors that it wrote to."""

    def __init__(self):
        super().__init__()
        self.noted, self.written = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name.removeprefix("aten::") in WAITS:
            raise RuntimeError(f"called a synchronizing operation\n{func}")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        named = [*zip(func._schema.arguments, args, strict=False)]
        named += [(one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs]
        for one, x in named:
            if one.alias_info is not None and one.alias_info.is_write:
                self.written.append((x, x.clone()))
        out = func(*args, **kwargs)
        places = {x.untyped_storage().data_ptr() for x in given}
        made = [x for x in tree_leaves(out) if x.untyped_storage().data_ptr() not in places or not x.numel()]
        if made or func._schema.is_mutable:  # else a view
            self.noted.append((func, args, kwargs, made))
        return out


class Tape:
    """See `longtake.engines.graph.Recorder`."""

    def __init__(self):
        self.rehearsed = self.recorded = self.replayed = 0

    def rehearse(self, run):
        self.rehearsed += 1
        with _Watch():
            return run()

    def record(self, run):
        self.recorded += 1
        with _Watch() as watch:
            out = run()
        for x, before in reversed(watch.written):  # a recording runs nothing
            x.copy_(before)

        def replay():
            self.replayed += 1
            for func, args, kwargs, made in watch.noted:
                again = func(*args, **kwargs)
                for x, y in zip(made, tree_leaves(again), strict=True) if made else ():
                    x.copy_(y)
            return out

        return replay
