"""torchvision beside a CPU build of torch: importing this first makes it importable.

Public indexes carry torchvision for CUDA alone. On a CPU build of torch its compiled operators do not load, and two of
their names are missed; transformers imports it wherever it is installed, TRL needs it. Neither is ever called here.
"""

from __future__ import annotations

import torch

if torch.version.cuda is None:
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # must live as long as the process
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
