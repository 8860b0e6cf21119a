"""Why a file is no whole film, from its bytes alone: so that the error names the cause and not the decoder's symptom.

Three containers promise a length that can be held against the file: ISO media (mp4, mov: a chain of boxes,
ISO/IEC 14496-12 §4.2), Matroska (the Segment element, RFC 9559 §5.1) and AVI (RIFF). Transport streams promise nothing.
"""

from __future__ import annotations

import stat
from pathlib import Path

SNIFF = 512  # bytes; a film's header has control bytes long before that
_TEXT = set(range(0x20, 0x100)) | set(b"\t\n\r\f")  # UTF-8 continuation bytes included
_AGAIN = "copy or download the film again"


def fault(path: Path) -> tuple[str, str, str] | None:
    """(what, why, fix) if the file cannot be a whole film, else None. Reads a few kilobytes at most."""
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISDIR(mode):
            return "this is a folder, not a film", "", "name the film files in it"
        if not stat.S_ISREG(mode):
            return "this is no file that can be read twice", "", "copy the film to one"
        if size == 0:
            return "the film is empty", "the file has 0 bytes", _AGAIN
        with path.open("rb") as file:
            head = file.read(SNIFF)
    except (FileNotFoundError, NotADirectoryError):
        return "no such film", "", "check the path; relative paths start at the row file's folder"
    except OSError as error:
        return "the film cannot be opened", (error.strerror or str(error)).lower(), "check who may read it"
    if set(head) <= _TEXT:
        line = head.decode("utf-8", "replace").strip().splitlines()
        return "this is a text, not a film", f"it begins with {(line[0][:60] if line else '')!r}", _AGAIN
    promised = promised_bytes(path)
    if promised > size:
        return "the film is cut short", f"the file has {size:,} bytes, its container promises {promised:,}", _AGAIN
    return None


def promised_bytes(path: Path) -> int:
    """Bytes that the container says the file has; 0 where it says nothing."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(head)
    return _boxes(path) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide") else 0


def _matroska(head: bytes) -> int:
    header, at = _vint(head, 4)
    at += header
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    segment, at = _vint(head, at + 4)
    return 0 if segment < 0 else at + segment


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """An EBML length and the place after it; -1 = unknown (all ones: written by a live muxer)."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    if not 1 <= width <= 8:
        return -1, at
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (-1 if value == (1 << 7 * width) - 1 else value), at + width


def _boxes(path: Path) -> int:
    """End of the last box of the chain; it stops at what is no box, so trailing rubbish does no harm."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8 or not head[4:8].isalnum():  # 0: the last box, to the end of the file
                break
            end += length
    return end
