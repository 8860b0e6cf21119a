"""Lets the public torchvision load beside a torch without CUDA; `make vllm` copies this file into vLLM's
environment, where every start of Python imports it.

torchvision from the package index is linked against CUDA: without it, its compiled operators are missing and the import
fails where it declares their shapes. They are declared here before it is imported; nothing in vLLM calls them for the
models of longtake.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

_kept: list[Any] = []  # a library that is collected takes its operators with it


class _Before:
    """Sees the first import of torchvision, and leaves it to the finders behind."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision" or _kept:
            return
        import torch

        if torch.version.cuda is None and "+" not in version("torchvision"):  # "+cpu" brings operators of its own
            library = torch.library.Library("torchvision", "FRAGMENT")
            _kept.append(library)
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Before)
