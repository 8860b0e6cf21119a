"""longtake teaches video-language models to reason over videos of minutes to hours, on the hardware you have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.records import Layout
    from longtake.runtime.door import shared_prefix
    from longtake.runtime.packedrow import PackedRow, pack_row

__version__ = "0.1.0"
__all__ = ["Layout", "PackedRow", "__version__", "pack_row", "shared_prefix"]

HOMES = {
    "Layout": "longtake.records",
    "PackedRow": "longtake.runtime.packedrow",
    "pack_row": "longtake.runtime.packedrow",
    "shared_prefix": "longtake.runtime.door",
}


def __getattr__(name: str) -> Any:
    """The door for other people's loops brings torch and transformers: it is imported when it is used."""
    if name not in HOMES:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
