"""How a run is told: the run folder on disk, the numbers of every step, progress for who is watching. No torch."""

from longtake.log.files import append_jsonl, read_json, read_jsonl, write_json_atomic, writing
from longtake.log.folder import RunFolder
from longtake.log.log import Counter, Log
from longtake.log.run import begin, finish

__all__ = [
    "Counter",
    "Log",
    "RunFolder",
    "append_jsonl",
    "begin",
    "finish",
    "read_json",
    "read_jsonl",
    "write_json_atomic",
    "writing",
]
