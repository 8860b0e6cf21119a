"""Films to pixels: the only file that knows a decoder.

A film is read twice. A scan over its packets, without decoding, gives the presentation time of every frame; so frame
numbers are exact whatever the container says of its length or rate. Then the wanted frames are decoded in one pass that
jumps to a key frame where that saves decoding, each resized as it comes; nothing but the wanted frames is ever held.

Seconds count from the film's first frame. Display rotation is honoured, pixel shape is not (as in torchcodec).
N frames in the film, F wanted frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from longtake.data.damage import fault
from longtake.data.timeline import Stamp, Timeline, stretches, timeline, usable
from longtake.errors import UserError
from longtake.records import Film

Size = tuple[int, int]  # width, height in pixels
Want = tuple[Sequence[int], Size]  # frame numbers, in any order, and the size they are wanted in
Clip = tuple[np.ndarray, np.ndarray]  # uint8 [F, H, W, 3] RGB, float64 [F] seconds

KEPT_SCANS = 16  # a scan of a two-hour film is 4 MB
_REENCODE = "re-encode it (ffmpeg -i film -c:v libx264 new.mp4) or leave it out"
# Without full chroma swscale is seven times further from transformers' bicubic (PIL's): 2.3 grey levels, not 0.3.
_BICUBIC = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


class VideoError(UserError):
    """A film that cannot be read: missing, damaged, no film at all."""


class Decoder(Protocol):
    """Something that reads films. Frame numbers, times and sizes mean the same with every decoder."""

    name: str  # decoder and version, for the receipt

    def probe(self, path: Path | str) -> Film:
        """What the film is. Raises VideoError."""

    def times(self, film: Film) -> np.ndarray | None:
        """[N] presentation times in seconds; None = constant rate, frame i at i / film.fps."""

    def keys(self, film: Film) -> np.ndarray:
        """bool [N]: key frames, which need no other one; none are known of streams without times."""

    def decode_many(self, film: Film, wants: Sequence[Want]) -> list[Clip]:
        """One clip a want, all in one pass. Raises VideoError if any wanted frame cannot be had."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Every frame of a film without its pixels."""

    line: Timeline
    size: Size  # as displayed
    turn: int  # quarter turns, anticlockwise
    codec: str


FileStamp = tuple[str, int, int]  # path, bytes, mtime: the same file, unread


class PyAV:
    """PyAV, one thread: films are shared out over processes instead. Content hashes and recent scans are remembered."""

    name = f"pyav {av.__version__}"

    def __init__(self) -> None:
        self._content: dict[FileStamp, str] = {}
        self._scans: dict[FileStamp, Scan] = {}

    def probe(self, path: Path | str) -> Film:
        scan, stamp = self._scan(path)
        if stamp not in self._content:
            with open(path, "rb") as file:
                self._content[stamp] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
        width, height = scan.size
        return Film(
            str(path),
            self._content[stamp],
            len(scan.line.seconds_N),
            scan.line.fps,
            scan.line.duration,
            width,
            height,
            scan.codec,
        )

    def times(self, film: Film) -> np.ndarray | None:
        scan, _ = self._scan(film.path)
        return None if scan.line.steady else scan.line.seconds_N

    def keys(self, film: Film) -> np.ndarray:
        return self._scan(film.path)[0].line.key_N

    def decode(self, film: Film, indices: Sequence[int], size: Size) -> Clip:
        """Frames `indices` of the film at (width, height) `size`."""
        return self.decode_many(film, [(indices, size)])[0]

    def decode_many(self, film: Film, wants: Sequence[Want]) -> list[Clip]:
        scan, _ = self._scan(film.path)
        if len(scan.line.seconds_N) != film.frames:
            raise VideoError("the film changed while it was in use", where=film.path, fix="run again")
        pixels = [np.empty((len(indices), size[1], size[0], 3), np.uint8) for indices, size in wants]
        places: dict[int, list[tuple[int, int]]] = {}  # frame number → (want, row) that it fills
        for want, (indices, _) in enumerate(wants):
            for row, i in enumerate(indices):
                assert 0 <= i < film.frames, f"frame {i} of {film.frames}"
                places.setdefault(int(i), []).append((want, row))
        scalers = {size: VideoReformatter() for _, size in wants}
        missing = set(places)
        for jumping in (True, False):  # a jump can miss where a container's index is wrong; reading on cannot
            for i, frame in _walk(film.path, scan, sorted(missing), jumping):
                sizes = {wants[want][1] for want, _ in places[i]}
                made = {size: _resized(frame, size, scan.turn, scalers[size]) for size in sizes}
                for want, row in places[i]:
                    pixels[want][row] = made[wants[want][1]]
                missing.discard(i)
            if not missing:
                return [(pixels[w], scan.line.seconds_N[list(indices)]) for w, (indices, _) in enumerate(wants)]
        first = min(missing)
        raise VideoError(
            f"{len(missing)} of {len(places)} wanted frames cannot be decoded",
            where=f"{film.path}, first frame {first} at {scan.line.seconds_N[first]:.3f} s",
            why="damaged packets",
            fix=_REENCODE,
        )

    def _scan(self, path: Path | str) -> tuple[Scan, FileStamp]:
        stamp = stamp_of(path)
        scan = self._scans.pop(stamp, None) or _scan(Path(path))
        self._scans[stamp] = scan  # most recent last
        if len(self._scans) > KEPT_SCANS:
            del self._scans[next(iter(self._scans))]
        return scan, stamp


def stamp_of(path: Path | str) -> FileStamp:
    """What tells two versions of a file apart without reading it. Raises VideoError if there is no file."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise _refused(Path(path), error.strerror or str(error)) from None
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _refused(path: Path, symptom: str) -> VideoError:
    """The error for a film that cannot be opened: its cause if the bytes show one, else the decoder's words."""
    what, why, fix = fault(path) or ("the film cannot be read", symptom, _REENCODE)
    return VideoError(what, where=str(path), why=why, fix=fix)


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise _refused(Path(path), error.strerror or str(error)) from None
    with container:
        films = [s for s in container.streams.video if Disposition.attached_pic not in s.disposition]  # album covers
        if not films:
            kinds = ", ".join(sorted({s.type for s in container.streams}))
            raise VideoError(
                "the file has no moving picture",
                where=str(path),
                why=f"it holds {kinds or 'no'} streams",
                fix="leave it out",
            )
        stream = films[0]
        if stream.codec_context is None:
            raise VideoError(
                "the film cannot be decoded", where=str(path), why="a codec this FFmpeg does not know", fix=_REENCODE
            )
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """All packets, the last one empty: it drains the decoder. Raises VideoError where the file breaks off."""
    try:
        yield from container.demux(stream)
    except FFmpegError as error:
        why = error.strerror or str(error)
        raise VideoError("the film breaks off", where=container.name, why=why, fix=_REENCODE) from None


def _frames(packet: av.Packet[VideoStream]) -> list[VideoFrame]:
    """Frames that a packet completes; none if it is damaged: what is missing is found at the end, by number."""
    try:
        return packet.decode()
    except FFmpegError:
        return []


def _scan(path: Path) -> Scan:
    """Presentation times of all frames, from packets alone but for the first frame. Raises VideoError."""
    if fault(path):
        raise _refused(path, "")
    with _opened(path) as (container, stream):
        codec, rate, base = stream.codec_context.name, stream.average_rate, stream.time_base
        first: VideoFrame | None = None
        stamps: list[Stamp | None] = []
        for packet in _packets(container, stream):
            if packet.size and not (packet.is_discard or packet.is_corrupt):
                known = None if packet.pts is None else Stamp(packet.pts, packet.is_keyframe, packet.duration or 0)
                stamps.append(known)
            if first is None:
                first = next(iter(_frames(packet)), None)
        if first is None or base is None:
            why = "none of its packets can be decoded" if stamps else "it holds no frames"
            raise VideoError("the film has no picture", where=str(path), why=why, fix=_REENCODE)
        if container.format.name == "avi" or codec == "vp8" or not usable(stamps):
            # AVI numbers packets, not frames; VP8 has packets never shown; raw streams say nothing: ask the decoder.
            stamps = _decoded_stamps(path)
    try:
        line = timeline(stamps, base, rate)
    except ValueError as error:
        raise VideoError("the film cannot be timed", where=str(path), why=str(error), fix=_REENCODE) from None
    turn = round(first.rotation / 90) % 4
    return Scan(line, (first.height, first.width) if turn % 2 else (first.width, first.height), turn, codec)


def _decoded_stamps(path: Path) -> list[Stamp | None]:
    """Stamps of the frames as they are shown, by decoding them all; no times if those run backwards."""
    with _opened(path) as (container, stream):
        frames = (frame for packet in _packets(container, stream) for frame in _frames(packet))
        stamps = [None if f.pts is None else Stamp(f.pts, f.key_frame, f.duration or 0) for f in frames]
    known = [stamp for stamp in stamps if stamp]
    return list(stamps) if known == sorted(known) else [None] * len(stamps)


def _walk(path: str, scan: Scan, wanted: Sequence[int], jumping: bool) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted frames in order, with their numbers, as far as they can be had."""
    with _opened(path) as (container, stream):
        for start, run in stretches(scan.line, wanted, jumping):
            try:
                if start and scan.line.pts_N is not None:
                    container.seek(int(scan.line.pts_N[start]), stream=stream)
                yield from _read(container, stream, scan.line, start, run)
            except (FFmpegError, VideoError):
                return


def _read(
    container: InputContainer, stream: VideoStream, line: Timeline, start: int, run: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Decode from frame `start`, a key frame or 0, to the last frame of the run."""
    times = line.pts_N
    number = {i if times is None else int(times[i]): i for i in run}  # a frame is known by its time, or by counting
    last, count = max(number), -1
    leading = start > 0  # some containers seek to before the key frame
    for packet in _packets(container, stream):
        if leading and times is not None:
            if packet.is_keyframe and packet.pts is not None and packet.pts > times[start]:
                return  # jumped too far
            if packet.pts != times[start]:
                continue
            leading = False
        for frame in _frames(packet):
            count += 1
            name = count if times is None else frame.pts
            if name in number:
                yield number[name], frame
            if name is not None and name >= last:
                return


def _resized(frame: VideoFrame, size: Size, turn: int, scaler: VideoReformatter) -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright."""
    width, height = size if turn % 2 == 0 else size[::-1]
    made = scaler.reformat(frame, width, height, "rgb24", interpolation=_BICUBIC, threads=1)
    plane = made.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)  # padded on the right
    pixels = rows[:, : 3 * width].reshape(height, width, 3)
    return np.rot90(pixels, turn) if turn else pixels
