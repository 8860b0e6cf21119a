"""Tiny real films whose every frame carries its number, as 16 black or white squares, legible after any resize."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

H264 = {"preset": "ultrafast", "crf": "18", "bf": "2", "g": "30"}
LEGIBLE = 8  # smallest side at which a number can still be read


def picture(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """uint8 [H, W, 3]: bit b of `number` is the square in row b // 4, column b % 4."""
    squares = np.array([number >> b & 1 for b in range(16)]).reshape(4, 4) * 255
    return np.kron(squares, np.ones((height // 4, width // 4)))[..., None].repeat(3, 2).astype(np.uint8)


def numbers(frames_FHWC: np.ndarray) -> list[int]:
    """The numbers of decoded frames."""
    count, height, width, _ = frames_FHWC.shape
    squares = frames_FHWC.mean(3).reshape(count, 4, height // 4, 4, width // 4).mean((2, 4)) > 127
    return [int(sum(int(bit) << b for b, bit in enumerate(frame.ravel()))) for frame in squares]


def render(
    path: Path,
    frames: int = 32,
    *,
    size: tuple[int, int] = (64, 64),
    fps: int = 16,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    turn: int | None = None,
    container: str | None = None,
    faststart: bool = False,
    first: int = 0,
) -> Path:
    """A film of `frames` numbered pictures; `times` = their presentation in milliseconds; `turn` = display rotation."""
    with av.open(str(path), "w", format=container, options={"movflags": "faststart"} if faststart else {}) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = H264 if options is None else options
        if turn is not None:
            stream.set_display_rotation(turn)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        file.start_encoding()
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def sound(path: Path, cover: bool = False) -> Path:
    """A second of silence, with an album cover if asked for."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac" if path.suffix == ".mp4" else "libmp3lame", rate=44100)
        picture_stream = file.add_stream("png", rate=1) if cover else None
        if picture_stream:
            picture_stream.width = picture_stream.height = 64
            picture_stream.pix_fmt = "rgb24"
            picture_stream.disposition = av.stream.Disposition.attached_pic
            file.mux(picture_stream.encode(av.VideoFrame.from_ndarray(picture(1), "rgb24")))
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            frame.sample_rate, frame.pts = 44100, 1024 * k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def cut(source: Path, to: Path, fraction: float = 0.6) -> Path:
    """The first part of a file: a download that broke off."""
    data = source.read_bytes()
    to.write_bytes(data[: int(len(data) * fraction)])
    return to
