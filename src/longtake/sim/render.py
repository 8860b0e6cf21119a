"""Scenes to real H.264 films: 64 x 64 pixels, 16 frames a second, no clock in the picture.

F frames, H height, W width.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from longtake.sim.scenes import COLOURS, FPS, FRIENDS, PLACES, SECONDS, SIZE, SWAPPED, Scene

Picture = NDArray[np.uint8]
Point = tuple[float, float]
RGB = {
    "red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (240, 220, 40),
    "cyan": (40, 210, 220), "magenta": (220, 50, 200), "orange": (250, 140, 20), "brown": (150, 90, 40),
    "white": (245, 245, 245), "grey": (130, 130, 130),
}  # fmt: skip
ROOMS = dict(zip(COLOURS, ((0, 0), (48, 0), (0, 48), (48, 48)), strict=True))
_Y, _X = np.mgrid[0:SIZE, 0:SIZE]


def _box(picture: Picture, x: float, y: float, width: int, height: int, colour: tuple[int, int, int]) -> None:
    left, top = round(x), round(y)
    picture[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = colour


def _disc(picture: Picture, centre: Point, radius: float, colour: tuple[int, int, int]) -> None:
    picture[(_X - centre[0]) ** 2 + (_Y - centre[1]) ** 2 <= radius * radius] = colour


def _cups(picture: Picture, event: str, second: int, progress: float | None, shift: Point, tick: float) -> None:
    _box(picture, 0, 50, SIZE, 14, RGB["brown"])
    xs, ys = [8 + shift[0], 26 + shift[0], 44 + shift[0]], [36 + shift[1]] * 3
    if second == 0 and progress is not None:
        shown = PLACES.index(event)
        ys[shown] -= 12
        _disc(picture, (xs[shown] + 6, 46 + shift[1]), 4, RGB["red"])
    elif progress is not None:
        i, j = SWAPPED[event]
        way, lift = (xs[j] - xs[i]) * progress, 16 * np.sin(np.pi * progress)
        xs[i], xs[j] = xs[i] + way, xs[j] - way
        ys[i], ys[j] = ys[i] - lift, ys[j] + 0.7 * lift
    for x, y in zip(xs, ys, strict=True):
        _box(picture, x, y, 12, 14, RGB["cyan"])
        _box(picture, x + 2, y - 2, 8, 2, RGB["white"])


def _screen(picture: Picture, event: str, second: int, progress: float | None, shift: Point, tick: float) -> None:
    _box(picture, 0, 54, SIZE, 10, RGB["grey"])
    _box(picture, (tick * 0.5) % SIZE, 48, 6, 6, RGB["white"])  # a distractor walks by
    _box(picture, 20 + shift[0], 10 + shift[1], 24, 24, RGB[event] if progress is not None else (60, 60, 60))


def _guard(picture: Picture, event: str, second: int, progress: float | None, shift: Point, tick: float) -> None:
    for colour, (x, y) in ROOMS.items():
        _box(picture, x, y, 16, 16, RGB[colour])
    x, y = 27 + 2 * np.sin(tick * 0.4), 27 + 2 * np.cos(tick * 0.3)  # idles in the middle
    if progress is not None:
        near = min(1.0, 2.2 * np.sin(np.pi * progress))
        x, y = (27 + (1 if ROOMS[event][axis] else -1) * 24 * near for axis in (0, 1))
    _box(picture, x, y, 10, 10, RGB["white"])


def _friends(picture: Picture, event: str, second: int, progress: float | None, shift: Point, tick: float) -> None:
    spots = [(12 + shift[0], 46 + shift[1]), (32 + shift[0], 18 + shift[1]), (52 + shift[0], 46 + shift[1])]
    coats = [RGB["magenta"], RGB["orange"], RGB["cyan"]]
    if progress is None:
        giver = receiver = -1
    else:
        names, thing = event.split(":")
        giver, receiver = (FRIENDS.index(name) for name in names.split(">"))
        coats[giver], coats[receiver] = RGB["white"], RGB["yellow"]  # the giver lights up white, the receiver yellow
    for spot, coat in zip(spots, coats, strict=True):
        _disc(picture, spot, 9, coat)
    if progress is not None:
        way = 0.4 + 0.2 * progress
        (x0, y0), (x1, y1) = spots[giver], spots[receiver]
        _disc(picture, (x0 + (x1 - x0) * way, y0 + (y1 - y0) * way), 7, RGB["green" if thing == "gem" else "red"])


PAINT = {"spatial": _cups, "temporal": _screen, "goal": _guard, "plot": _friends}


def pictures(scene: Scene) -> Picture:
    """Every frame of the film: uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(scene.look)
    ground = rng.integers(10, 45, 3)
    shift = (float(rng.integers(-3, 4)), float(rng.integers(-3, 4)))
    drift = float(rng.integers(0, FPS * SECONDS))
    film = np.empty((FPS * SECONDS, SIZE, SIZE, 3), np.uint8)
    film[:] = ground
    for tick, picture in enumerate(film):
        second = tick // FPS
        shown = scene.shown(second)
        progress = (tick - shown.start + 0.5) / len(shown) if tick in shown else None
        PAINT[scene.kind](picture, scene.events[second], second, progress, shift, tick + drift)
    return film


def write_film(film: Picture, path: Path, fps: int = FPS) -> None:
    """Encodes uint8 [F, H, W, 3] as H.264 in an mp4, one thread: the same bytes on every run.

    The file appears whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.mp4")
    convert = VideoReformatter()
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "18"})
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for number, picture in enumerate(film):
            frame = convert.reformat(av.VideoFrame.from_ndarray(picture, format="rgb24"), format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    partial.replace(path)
