"""Pictures as films: the second decoder beside data.video, for films that come as extracted frames.

VLM-RLAIF's rows list them, ShareGPTVideo's films are folders of them. Nothing says when they were shown: picture i is
taken to be at i / rate seconds, and the receipt names the rate. How such films are written: data.album. N pictures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps

from longtake.data.album import Album, album
from longtake.data.video import Clip, Decoder, FileStamp, Size, VideoError, Want, stamp_of
from longtake.records import Film

_BAD_BYTES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for them


def read_picture(path: Path | str) -> np.ndarray:
    """A picture file as uint8 [H, W, 3] RGB, upright by its EXIF, transparent places white. Raises VideoError."""
    return np.asarray(_opened(path))


def resized(picture_HWC: np.ndarray, size: Size) -> np.ndarray:
    """The picture at (width, height) `size`, by PIL's bicubic, as transformers' processors do."""
    return np.asarray(Image.fromarray(picture_HWC).resize(size, Image.Resampling.BICUBIC))


def decoder_of(path: Path | str, films: Decoder) -> Decoder:
    """Whoever reads this film: `films` where it is not made of pictures. Raises VideoError."""
    found = _album(path)
    return Pictures(found) if found else films


def film_stamp(path: Path | str) -> FileStamp:
    """video.stamp_of for a film in any form: changes when one of its pictures does. Raises VideoError."""
    found = _album(path)
    if found is None:
        return stamp_of(path)
    digest, total = hashlib.blake2b(digest_size=7), 0  # 56 bits: whole in any reader's JSON but JavaScript's
    for i, file in enumerate(found.files):
        try:
            stat = os.stat(file)
        except OSError as error:
            raise _flawed(path, found, i, (error.strerror or str(error)).lower()) from None
        total += stat.st_size
        digest.update(f"{os.path.basename(file)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return os.path.abspath(path), total, int.from_bytes(digest.digest(), "big")


class Pictures:
    """The decoder (data.video.Decoder) of one film of pictures."""

    def __init__(self, found: Album) -> None:
        self._album = found
        several = f", {found.rate:g} pictures a second" if len(found.files) > 1 else ""
        self.name = f"pillow {PIL.__version__}{several}"

    def probe(self, path: Path | str) -> Film:
        """Reads every file, and every header: pictures of different sizes are no film. Raises VideoError."""
        digest = hashlib.blake2b(f"{self._album.rate!r}\n".encode(), digest_size=20)
        sizes: list[Size] = []
        for i, file in enumerate(self._album.files):
            try:
                sizes.append(_upright(file))
            except VideoError as error:
                raise _flawed(path, self._album, i, error.why) from None
            if sizes[-1] != sizes[0]:
                raise _flawed(path, self._album, i, "{}x{} pixels, the first has {}x{}".format(*sizes[-1], *sizes[0]))
            data = Path(file).read_bytes()
            digest.update(f"{len(data)}\n".encode() + data)
        count, rate = len(sizes), self._album.rate
        return Film(str(path), digest.hexdigest(), count, rate, count / rate, *sizes[0], "pictures")

    def times(self, film: Film) -> None:
        """A constant rate."""

    def keys(self, film: Film) -> np.ndarray:
        """Every picture stands by itself."""
        return np.ones(film.frames, bool)

    def decode_many(self, film: Film, wants: Sequence[Want]) -> list[Clip]:
        if len(self._album.files) != film.frames:
            raise VideoError("the film changed while it was in use", where=film.path, fix="run again")
        clips = [
            (np.empty((len(indices), size[1], size[0], 3), np.uint8), np.array(indices) / film.fps)
            for indices, size in wants
        ]
        for i in sorted({i for indices, _ in wants for i in indices}):
            try:
                picture_HWC = read_picture(self._album.files[i])
            except VideoError as error:
                raise _flawed(film.path, self._album, i, error.why) from None
            for (pixels_FHWC, _), (indices, size) in zip(clips, wants, strict=True):
                rows = [row for row, wanted in enumerate(indices) if wanted == i]
                if rows:
                    pixels_FHWC[rows] = resized(picture_HWC, size)
        return clips


def _album(path: Path | str) -> Album | None:
    found = album(path)
    if found and not found.files:
        fix = "name the film files in it, or a folder of .jpg or .png frames"
        raise VideoError("this is a folder, not a film", where=str(path), why="no pictures are in it", fix=fix)
    if found and not found.rate:
        raise VideoError("a film of no pictures a second", where=str(path), fix="give #fps a number above 0")
    return found


def _opened(path: Path | str) -> Image.Image:
    """The picture in RGB, upright."""
    with _read(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                clear = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            return upright.convert("RGB")
        except _BAD_BYTES as error:
            raise _unread(path, str(error)) from None


def _read(path: Path | str) -> Image.Image:
    """The picture's header; its file stays open."""
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise VideoError("no such picture", where=str(path), why="no such file", fix="check the path") from None
    except PIL.UnidentifiedImageError:
        raise _unread(path, "no format that Pillow knows") from None
    except _BAD_BYTES as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise _unread(path, (why or str(error)).lower()) from None
    deep = image.mode[0] in "IF"
    several = image.format in ("PNG", "TIFF", "WEBP") and getattr(image, "n_frames", 1) > 1  # (Pillow's own idiom)
    if deep or several:
        image.close()
        raise _unread(path, "more than 8 bits a pixel and colour" if deep else "several pictures in one file")
    return image


def _upright(path: Path | str) -> Size:
    with _read(path) as image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
        except _BAD_BYTES as error:
            raise _unread(path, str(error)) from None
        return image.size[::-1] if turned else image.size


def _unread(path: Path | str, why: str) -> VideoError:
    return VideoError("the picture cannot be read", where=str(path), why=why, fix="save it again as PNG or JPEG")


def _flawed(path: Path | str, found: Album, i: int, why: str) -> VideoError:
    """The film's error for its picture i."""
    if len(found.files) == 1:
        return VideoError("the picture cannot be used", where=str(path), why=why, fix="save it again or leave it out")
    what = f"picture {i + 1} of the film's {len(found.files)} cannot be used"
    name = os.path.basename(found.files[i])
    return VideoError(what, where=str(path), why=f"{name}: {why}", fix="extract the frames again or leave the film out")
