"""The vision tower of Qwen2.5-VL, with random weights on random patches: seconds to encode a film once."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from bench.h200_net import TINY, Clock, Size
from longtake.models import attention as registered

CHUNK = 64  # frames that are encoded together


def tower(size: Size, device: str, dtype: torch.dtype) -> Any:
    """As in the 3B and 7B checkpoints."""
    depth, width, inner, heads = (2, 32, 48, 2) if size is TINY else (32, 1280, 3420, 16)
    config = Qwen2_5_VLVisionConfig(
        depth=depth,
        hidden_size=width,
        intermediate_size=inner,
        num_heads=heads,
        out_hidden_size=size.width,
        fullatt_block_indexes=list(range(depth // 4 - 1, depth, 8)) if depth > 2 else [1],
    )
    registered.register()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            net = Qwen2_5_VisionTransformerPretrainedModel(config)
    finally:
        torch.set_default_dtype(before)
    net.config._attn_implementation = registered.VISION  # set_attn_implementation would look for a package of the name
    return net.eval().requires_grad_(False)


@torch.no_grad()
def encode(net: Any, size: Size, frames: int, clock: Clock) -> None:
    """Adds the seconds of `frames` frames to clock.seconds["encode"]."""
    config = net.config
    merge = config.spatial_merge_size
    down, across = (side * merge for side in size.grid)
    numbers = config.in_channels * config.temporal_patch_size * config.patch_size**2
    for start in range(0, frames, CHUNK):
        pairs = min(CHUNK, frames - start) // 2
        patches = torch.randn(pairs * down * across, numbers, device=clock.device, dtype=net.dtype)
        grid = torch.tensor([[pairs, down, across]], device=clock.device)
        with clock("encode"):
            net(patches, grid_thw=grid)
