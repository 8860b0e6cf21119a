"""Films of pictures: how they are written, and that they are read as other films are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import ExifTags, Image
from tests.data.films import numbers, picture

from longtake.data.album import RATE, album, written
from longtake.data.cache import FrameTier
from longtake.data.pictures import read_picture, resized
from longtake.data.quarantine import Quarantine
from longtake.data.video import VideoError
from longtake.records import FramePolicy

MOST_LINES = 6
ORIENTATION = ExifTags.Base.Orientation


def fit(width: int, height: int, frames: int, most: int | None) -> tuple[int, int]:
    return width, height


def frames(folder: Path, count: int, name: str = "{}.png", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(first + i)).save(folder / name.format(i))
    return folder


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (["f08.jpg", "f09.jpg", "f10.jpg"], "v/f{08..10}.jpg"),
        (["8.jpg", "9.jpg", "10.jpg"], "v/{8..10}.jpg"),
        (["image_01.jpeg", "image_02.jpeg"], "v/image_{01..02}.jpeg"),
        (["3.png", "2.png", "1.png"], "v/{3..1}.png"),
        (["1.jpg", "3.jpg"], "v/{1,3}.jpg"),
        (["1.jpg", "1.jpg"], "v/{1,1}.jpg"),
        (["0.jpg", "00.jpg"], "v/{0,00}.jpg"),
        (["a.jpg", "b.jpg"], "v/{a,b}.jpg"),
        (["c01_1.jpg", "c02_1.jpg"], "v/{c01_1,c02_1}.jpg"),
    ],
)
def test_a_list_is_written_and_read_back(names: list[str], path: str) -> None:
    files = [f"v/{name}" for name in names]
    assert written(files) == path
    found = album(path)
    assert found is not None
    assert (list(found.files), found.rate) == (files, RATE)
    slow = album(written(files, 0.5))
    assert slow is not None
    assert (list(slow.files), slow.rate) == (files, 0.5)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["a/1.jpg", "b/2.jpg"], "2 folders"),
        (["1.jpg", "2.png"], "several formats"),
        (["1.jpg", "2.mp4"], "'2.mp4'"),
        (["1{.jpg", "2{.jpg"], "no name of a picture"),
        (["1.jpg"], "one picture"),
    ],
)
def test_lists_that_no_path_can_say(files: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        written(files)


def test_what_is_no_film_of_pictures(tmp_path: Path) -> None:
    odd = tmp_path / "film{1,2}.jpg"
    odd.touch()
    found = album(odd)
    assert found is not None
    assert found.files == (str(odd),), "a file that is there is itself"
    assert album("a.mp4") is None
    assert album("no/such/folder") is None
    assert album("clip{1,2}.mp4") is None


@pytest.mark.parametrize(
    ("path", "seen", "fps"),
    [
        ("v", range(12), 2.0),
        ("v#fps=0.5", range(12), 0.5),
        ("v/{3..5}.png", (3, 4, 5), 2.0),
        ("v/{7,2}.png", (7, 2), 2),
    ],
)
def test_a_film_of_pictures(tmp_path: Path, path: str, seen: Any, fps: float) -> None:
    frames(tmp_path / "v", 12)
    (tmp_path / "v" / "note.txt").write_text("left alone")
    (tmp_path / "v" / "._1.png").write_bytes(b"left alone by macOS")
    tier, seen = FrameTier(tmp_path / "tier"), list(seen)
    film = tier.film(tmp_path / path)
    assert (film.frames, film.fps, film.duration) == (len(seen), fps, len(seen) / fps)
    pixels, receipt = tier.take(tmp_path / path, FramePolicy(frames=99), fit)
    assert numbers(pixels) == seen, "in natural order: 2.png before 10.png"
    assert receipt.seconds == tuple(i / fps for i in range(len(seen)))
    assert receipt.backend == f"pillow {PIL.__version__}, {fps:g} pictures a second"
    pixels, receipt = tier.take(tmp_path / path, FramePolicy(frames=2), lambda *_: (32, 16), temporal_patch=2)
    assert receipt.indices == (len(seen) // 4, 3 * len(seen) // 4)
    assert pixels.shape == (2, 16, 32, 3)


def test_content_is_of_all_bytes_and_the_rate(tmp_path: Path) -> None:
    folder, tier = frames(tmp_path / "v", 3, "{}.bmp"), FrameTier(tmp_path / "tier")
    contents = [tier.film(folder).content]
    contents += [tier.film(f"{folder}#fps=1").content, tier.film(folder / "{0..1}.bmp").content]
    contents.append(tier.film(frames(tmp_path / "w", 3, "{}.bmp", first=9)).content)
    assert len(set(contents)) == 4
    assert tier.film(folder / "{0..2}.bmp").content == contents[0], "the same pictures in the same order"
    assert tier.film(folder / "{2..0}.bmp").content != contents[0]
    stamp = (folder / "1.bmp").stat()
    Image.fromarray(picture(99)).save(folder / "1.bmp")
    os.utime(folder / "1.bmp", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert tier.film(folder).content != contents[0], "one picture was changed in place, to one of as many bytes"
    assert FrameTier(tmp_path / "tier").film(folder).content == tier.film(folder).content
    pixels, _ = tier.take(folder, FramePolicy(frames=3), fit)
    assert numbers(pixels) == [0, 99, 2]


def test_kept_frames_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tier = frames(tmp_path / "v", 4), FrameTier(tmp_path / "tier")
    tier.fill({folder: [FramePolicy(frames=4)]}, fit, workers=1)
    monkeypatch.setattr("longtake.data.pictures.read_picture", None)
    assert numbers(tier.take(folder, FramePolicy(frames=4), fit)[0]) == [0, 1, 2, 3]
    assert list(tier.decodes().values()) == [1]


def test_one_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    file = frames(tmp_path / "v", 1) / "0.png"
    pixels, receipt = FrameTier(tmp_path / "tier").take(file, FramePolicy(seconds=(0.0,)), fit)
    assert numbers(pixels) == [0]
    assert receipt.backend == f"pillow {PIL.__version__}"


def spoil(folder: Path, how: str) -> Path:
    path = folder / "1.png"
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-60])
        case "size":
            Image.fromarray(picture(1, 32, 64)).save(path)
        case "deep":
            Image.new("I;16", (64, 64)).save(path)
        case "moving":
            still = Image.new("RGB", (64, 64))
            still.save(path, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
        case "text":
            path.write_text("404")
        case "none":
            path.unlink()
            return folder / "{0..2}.png"
        case "empty":
            for file in folder.iterdir():
                file.unlink()
        case "still":
            return Path(f"{folder}#fps=0")
    return folder


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("cut", "1.png: "),
        ("size", "1.png: 32x64 pixels, the first has 64x64"),
        ("deep", "1.png: more than 8 bits"),
        ("moving", "1.png: several pictures"),
        ("text", "1.png: no format"),
        ("none", "1.png: no such file"),
        ("empty", "no pictures are in it"),
        ("still", "no pictures a second"),
    ],
)
def test_films_of_pictures_that_cannot_be_used(tmp_path: Path, how: str, why: str) -> None:
    path, quarantine = spoil(frames(tmp_path / "v", 3), how), Quarantine(tmp_path)
    tier = FrameTier(tmp_path / "tier")
    with pytest.raises(VideoError) as caught:
        tier.take(path, FramePolicy(frames=3), fit)
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) <= MOST_LINES
    tier.fill({path: [FramePolicy(frames=3)]}, fit, 0, quarantine)
    assert why in quarantine.films()[0].reason


def test_a_picture_is_upright_and_rgb(tmp_path: Path) -> None:
    wide = Image.fromarray(picture(6, 64, 32))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    wide.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), np.rot90(picture(6, 64, 32), 3))
    assert FrameTier(tmp_path / "tier").film(tmp_path / "turned.png").width == 32
    Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").tolist() == [[[255, 255, 255]] * 2]
    Image.new("L", (1, 1), 7).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").tolist() == [[[7, 7, 7]]]
    assert numbers(resized(picture(77), (32, 16))[None]) == [77]


@pytest.mark.parametrize("name", ["no.png", "text.png", ""])
def test_no_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(VideoError) as caught:
        read_picture(tmp_path / name)
    assert len(str(caught.value).splitlines()) <= MOST_LINES
