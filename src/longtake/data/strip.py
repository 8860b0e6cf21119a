"""A filmstrip: a few of the frames that a model saw, side by side in time order, for people to look at. F frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from longtake.log import writing


def save_strip(frames_FHWC: np.ndarray, path: Path, height: int = 64, most: int = 16) -> tuple[int, ...]:
    """Save at most `most` of the uint8 RGB frames as one JPEG, `height` pixels high; returns which frames it shows.

    More frames than that are thinned to the centres of equal bins. Small frames are enlarged without smoothing.
    """
    count, tall, wide, _ = frames_FHWC.shape
    shown = tuple((2 * k + 1) * count // (2 * most) for k in range(most)) if count > most else tuple(range(count))
    size = (max(1, round(wide * height / tall)), height)
    method = Image.Resampling.NEAREST if tall < height else Image.Resampling.BOX
    strip = np.concatenate([np.asarray(Image.fromarray(frames_FHWC[i]).resize(size, method)) for i in shown], axis=1)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip).save(path, format="JPEG", quality=85)
    return shown
