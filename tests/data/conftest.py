"""Films shared by the tests of this folder."""

from pathlib import Path

import pytest
from tests.data.films import render

VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "30"}
KINDS: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "mp4": (".mp4", "libx264", None),
    "mkv": (".mkv", "libx264", None),
    "ts": (".ts", "libx264", None),
    "webm": (".webm", "libvpx-vp9", VP9),
    "vp8": (".webm", "libvpx", VP9),
    "avi-mpeg4": (".avi", "mpeg4", {"bf": "2", "g": "12"}),
    "avi-h264": (".avi", "libx264", None),  # frames reordered in a container that cannot say so
    "raw": (".h264", "libx264", None),  # no times at all
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="session")
def film_of_kind(folder: Path) -> dict[str, Path]:
    """One film of 100 frames in each container."""
    made = {}
    for kind, (suffix, codec, options) in KINDS.items():
        container = "h264" if kind == "raw" else None
        made[kind] = render(folder / f"{kind}{suffix}", 100, codec=codec, options=options, container=container)
    return made


@pytest.fixture(scope="session")
def mp4(film_of_kind: dict[str, Path]) -> Path:
    return film_of_kind["mp4"]


@pytest.fixture(scope="session")
def long_film(folder: Path) -> Path:
    """3,000 frames at 30 a second with a key frame every 60, B-frames between."""
    return render(folder / "long.mp4", 3000, fps=30, options={"preset": "ultrafast", "bf": "2", "g": "60"})


@pytest.fixture
def nasa() -> Path:
    """A real film, 13 s, of the shared data folder beside the checkout or above it."""
    for above in Path(__file__).resolve().parents:
        film = above / "shared" / "data" / "nasa_13013.mp4"
        if film.exists():
            return film
    pytest.skip("shared/data/nasa_13013.mp4 is not here")
