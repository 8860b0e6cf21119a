"""The words that ask for captions, verdicts and scores; `--prompts FILE.yaml` says them otherwise. No torch here.

Slots in braces are filled in; other braces stay as they are. Intent from VLM-RLAIF (arXiv 2402.03746 §3.2: right about
the video, helpful) and LLaVA-Hound (arXiv 2404.01258: 1 to 5 with captions as evidence); the words are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from longtake.config import suggest
from longtake.errors import UserError

CAPTION = """\
Describe in detail what happens in this part of a video, in the order in which it happens: who and what is seen, what \
they do, where it is, and any text that can be read. Say only what can be seen."""
NARRATIVE = """\
The video, described part by part and in order:
{clips}

"""
PAIR = """\
{narrative}Here are a question about the video and two answers to it. Which answer is better? First of all it must be \
right about the video: what it says is seen there, nothing is made up, nothing that matters is missing. Of two answers \
that are equally right, the more helpful one is better: it answers what was asked, clearly and to the point. The order \
of the answers and their length mean nothing.

Question:
{question}

Answer A:
{first}

Answer B:
{second}

Reason step by step about both, then write <answer>A</answer> or <answer>B</answer>, or <answer>tie</answer> if \
neither is better."""
SCORE = """\
{narrative}Here are a question about the video and an answer to it. How good is the answer? Look at whether it is \
relevant to the question, right about the video, clear, and complete. Take the descriptions as evidence where they are \
given.

Question:
{question}

Answer:
{answer}

5 is right and complete, 4 right with something small missing, 3 right in part, 2 mostly wrong, 1 wrong or beside the \
question. Reason step by step, then write the score: <answer>1</answer> to <answer>5</answer>."""

SLOTS = {
    "caption": ("start", "stop"),
    "clip": ("start", "stop", "caption"),
    "narrative": ("clips",),
    "pair": ("narrative", "question", "first", "second"),
    "score": ("narrative", "question", "answer"),
}
FREE = {"start", "stop"}  # slots that need not be there; nor {narrative}, where none is told
SLOT = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Templates. Example: Prompts(caption="what happens ?", clip="{caption}", narrative="{clips} ")."""

    caption: str = CAPTION
    clip: str = "{start} to {stop} seconds: {caption}"  # a line of the narrative
    narrative: str = NARRATIVE  # what {narrative} becomes; nothing where there is none
    pair: str = PAIR
    score: str = SCORE


def read_prompts(path: Path | None, *, told: bool) -> Prompts:
    """The shipped ones, with those of the file in their place; `told`: a narrative is. Raises UserError."""
    if path is None:
        return Prompts()
    names = [one.name for one in fields(Prompts)]
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        fix = f"a YAML file with lines of `name: text`; names: {', '.join(names)}"
        raise UserError(
            "the prompts cannot be read", where=str(path), why=" ".join(why.split())[:200], fix=fix
        ) from error
    if not isinstance(given, dict):
        raise UserError("the prompts are no lines of `name: text`", where=str(path), fix=f"names: {', '.join(names)}")
    for name, text in given.items():
        if name not in names:
            near = suggest(str(name), names)
            fix = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"there is no prompt called {name!r}", where=str(path), fix=fix)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"the prompt {name} is no text", where=str(path), why=f"it is {text!r:.60}")
        strange = sorted(set(SLOT.findall(text)) - set(SLOTS[name]))
        free = FREE if told else FREE | {"narrative"}
        lacking = [slot for slot in SLOTS[name] if slot not in free and f"{{{slot}}}" not in text]
        if strange or lacking:
            what = f"no slot is called {{{strange[0]}}}" if strange else f"the slot {{{lacking[0]}}} is missing"
            slots = ", ".join(f"{{{slot}}}" for slot in SLOTS[name])
            raise UserError(what, where=f"{path}: {name}", fix=f"slots here: {slots}")
    return replace(Prompts(), **given)


def fill(template: str, **slots: str) -> str:
    """The template with its slots filled, all at once: braces in what is filled in are left alone."""
    return SLOT.sub(lambda match: slots.get(match[1], match[0]), template)
