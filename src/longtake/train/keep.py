"""Rollouts on disk, as the report shows them: question, filmstrip of what was seen, answers, rewards, advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longtake.data.strip import save_strip
from longtake.log.files import write_jsonl, writing
from longtake.records import Receipt
from longtake.runtime.films import Films, Look
from longtake.train.keys import keyed
from longtake.train.rollout import Rollout

MOST = 12  # questions of a step that are kept


def keep(
    folder: Path, step: int, answered: Rollout, advantage_NG: Sequence[Sequence[float | None]], films: Films
) -> None:
    """Writes folder/rollouts/<step>.jsonl and the strips it names, on the first rank."""
    if not films.ranks.world.leads:
        return
    rows = []
    for look, group, scores, advantages in list(
        zip(answered.looks, answered.groups, answered.scores, advantage_NG, strict=True)
    )[:MOST]:
        question = look.question
        answers = [
            {
                "text": a.text,
                "tokens": len(a.ids),
                "finish": a.finish,
                "reward": s.reward,
                "parts": dict(s.parts),
                "advantage": v,
                "correct": s.correct,
            }
            for a, s, v in zip(group.answers, scores, advantages, strict=True)
        ]
        row: dict[str, Any] = {"step": step, "id": question.id, "kind": question.kind, "hops": question.hops}
        row |= {
            "question": question.text,
            "options": question.options,
            "answer": question.answer,
            "evidence": question.evidence,
        }
        receipt = group.prompt.receipt
        row |= {
            "receipt": receipt and asdict(receipt),
            "strip": receipt and strip(folder, receipt, films, look),
            "answers": answers,
        }
        rows.append(row)
    with writing(folder / "rollouts"):
        (folder / "rollouts").mkdir(exist_ok=True)
    write_jsonl(folder / "rollouts" / f"{step:06d}.jsonl", rows)


def strip(folder: Path, receipt: Receipt, films: Films, look: Look) -> str:
    """The filmstrip of a receipt, made once; its path inside the run folder."""
    name = f"thumbs/{receipt.content[:16]}-{len(receipt.indices)}-{keyed(*receipt.indices):016x}.jpg"
    if not (folder / name).exists():
        with writing(folder / name):
            (folder / "thumbs").mkdir(exist_ok=True)
            save_strip(films.frames(look), folder / f"{name}.part.jpg", most=64)
            (folder / f"{name}.part.jpg").replace(folder / name)
    return name
