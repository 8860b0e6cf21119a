"""longtake teaches video-language models to reason over videos of minutes to hours, on the hardware you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.records import Layout
    from longtake.runtime.door import PackedRow, pack_row, shared_prefix

__version__ = "0.1.0"
__all__ = ["Layout", "PackedRow", "__version__", "pack_row", "shared_prefix"]


def __getattr__(name: str) -> Any:
    """The door for other people's loops, which brings torch and transformers: imported when it is used."""
    if name not in __all__:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    from longtake.runtime import door

    return getattr(door, name)
