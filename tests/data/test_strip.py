"""Filmstrips show the right frames, in order, at the right height."""

from pathlib import Path

import numpy as np
from PIL import Image
from tests.data.films import numbers, picture

from longtake.data.strip import save_strip


def test_frames_in_order_and_enlarged(tmp_path: Path) -> None:
    frames = np.stack([picture(k, 32, 16) for k in range(5)])
    assert save_strip(frames, tmp_path / "thumbs" / "a.jpg") == (0, 1, 2, 3, 4)
    strip = np.asarray(Image.open(tmp_path / "thumbs" / "a.jpg"))
    assert strip.shape == (64, 5 * 128, 3)
    assert numbers(np.stack(np.split(strip, 5, axis=1))) == [0, 1, 2, 3, 4]


def test_at_most_sixteen(tmp_path: Path) -> None:
    frames = np.stack([picture(k) for k in range(100)])
    shown = save_strip(frames, tmp_path / "a.jpg")
    assert shown == tuple(int((k + 0.5) * 100 / 16) for k in range(16))
    strip = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert numbers(np.stack(np.split(strip, 16, axis=1))) == list(shown)


def test_large_frames_are_reduced(tmp_path: Path) -> None:
    save_strip(np.stack([picture(k, 320, 240) for k in range(3)]), tmp_path / "a.jpg", height=24, most=2)
    with Image.open(tmp_path / "a.jpg") as strip:
        assert strip.size == (64, 24)
