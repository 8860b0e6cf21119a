"""Which option an answer names: one function for rewards and evaluation, so that training and score cannot differ.

The field's extractors take the first capital they meet ("Best answer: C" becomes B in one harness, "option C, not A"
becomes A in another) or give up on "B.". Here a letter counts only where it stands for an option, denied mentions are
struck out, and doubt is None, never a guess.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*(?=\{)|\\[()\[\]]|[*_`$#{}]")
OPENING = r"[\s(\[\"'‘“]*"
LINK = (
    r"(?:\s+(?:is|was|be|would|should|must|to|as|thus|therefore|clearly|likely|probably|most|option|choice|letter|answer)\b)*"
    rf"\s*[是为]?\s*[:=]?\s*(?:(?:option|choice|letter)\b)?{OPENING}"
)
BEST = r"(?:correct|right|best|final|my)\s+(?:option|choice|letter)"
VERDICT = re.compile(rf"(?:\b(?:answers?|{BEST}|choose|chose|pick|select|go with)\b|答案){LINK}", re.IGNORECASE)
TURN = re.compile(  # "No, it's C"; "so D"
    r"\b(?:no[,.;:!]|(?:wait|actually|correction|sorry|so|therefore|thus|hence)\b)[\s,.:;!-]*"
    rf"(?:it['’]s\s+|it (?:is|must be)\s+|i mean\s+)?(?:option\s+)?{OPENING}",
    re.IGNORECASE,
)
MENTION = re.compile(rf"(?:\b(?:options?|choice|letter)\b|选项)\s*:?{OPENING}", re.IGNORECASE)
IS_RIGHT = re.compile(
    r"[)\].\"']*\s+(?:is|seems|looks|must be|would be)\s+(?:\w+ly\s+)?(?:the\s+)?(?:most\s+)?"
    r"(?:correct|right|best|true|answer|plausible|likely)\b",
    re.IGNORECASE,
)
DENIED_BEFORE = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\brather than|\binstead of|\bneither|\bnor|\bexcept|\bover|\bthan|\bunlike"
    r"|\b(?:rul(?:e|es|ed|ing) out|(?:eliminat|reject|exclud|dismiss)(?:es?|s|ed|ing)?))"
    r"(?:\s+(?:be|is|the|an|options?|choice|answer|letter|either|choose|pick|select)\b)*[\s:(\[\"']*\Z",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    r"[)\].:\"']*\s*(?:(?:is|was|are|were|seems?|looks?|would be|can be|must be|has been)\s+(?:\w+ly\s+)?"
    r"(?:not|wrong|incorrect|false|out|unlikely|ruled|eliminated|excluded)"
    r"|(?:is|was|does|did|can|could|would)(?:n['’]t|\s+not)|cannot)\b",
    re.IGNORECASE,
)
JOINED = re.compile(
    r"[)\]\"']*\s*(?:,|/|&|\+|;|\band\b|\bor\b|->|→|>|\s)\s*(?:(?:and|or)\s+)?(?:option\s+)?[(\[\"']*", re.IGNORECASE
)
NUMBERED_THING = re.compile(
    r"\b(?:team|group|plan|room|camera|player|vitamin|type|grade|part|scene|step|gate|class)\s+\Z", re.IGNORECASE
)
BESIDE = 20  # characters between letters that are listed together, at most
BEHIND = 80  # characters that can hold a denial or the name of a numbered thing
NEXT_WORD = re.compile(r"[ \t]+[A-Za-z]\w")  # makes "A" an article,
GOES_ON = re.compile(  # unless the sentence goes on with it
    r"\s+(?:because|since|as|due|given|based|and|or|is|was|seems|appears|fits|matches|but|would|must|should|not|rather|here|then)\b"
)


@dataclass(frozen=True, slots=True)
class _Mention:
    letter: str
    start: int
    stop: int


def answer_span(text: str) -> tuple[str, bool]:
    """(the part of an answer that says the result, whether answer tags hold it). "" where a thought never ended.

    The last <answer> counts, closed or not; without tags, what follows the thinking.
    """
    rest = re.split(r"</think>", text, flags=re.IGNORECASE)[-1]
    for part in (rest, text):  # an answer inside the thinking counts only if nothing follows it
        pieces = re.split(r"<answer>", part, flags=re.IGNORECASE)
        if len(pieces) > 1:
            return _before_end(pieces[-1]), True
        if part.strip():
            break
    return ("", False) if re.search(r"<think>", rest, re.IGNORECASE) else (_before_end(rest), False)


def _before_end(text: str) -> str:
    return re.split(r"</answer>", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def plain(text: str) -> str:
    """For comparing texts: lower case, single spaces, no punctuation at the ends, no article in front."""
    bare = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'’“”()[]*`")
    return re.sub(r"^(?:a|an|the) (?=\S)", "", bare)


def extract(text: str, options: Sequence[str]) -> str | None:
    """Letter of the option that an answer names; None if it names none or leaves it open.

    text: the whole answer, thinking included; options: texts without letters, A first. In order of trust: the answer
    is a letter or an option's text; a verdict ("the answer is C", "B) left", "D is correct"); "option C"; a lone
    capital; the only option whose text occurs. Denied mentions ("not A", "A is wrong") never count. Of several the
    last counts, and none if they stand side by side ("A or B").
    """
    letters = string.ascii_uppercase[: len(options)]
    span = MARKUP.sub("", unicodedata.normalize("NFKC", answer_span(text)[0])).strip()
    if not letters or not span:
        return None
    return _Reading(_without_list(span, letters, options), letters, options).letter()


def result(text: str, options: Sequence[str]) -> str | None:
    """What an answer comes to: the letter where there are options, else its span; None if there is neither."""
    return extract(text, options) if options else answer_span(text)[0] or None


def _without_list(span: str, letters: str, options: Sequence[str]) -> str:
    """The span without a restatement of all options, which answers nothing."""
    pairs = [
        rf"[(\[]?{letter}[).:\]]?\s*{re.escape(option.strip())}"
        for letter, option in zip(letters, options, strict=True)
    ]
    return re.sub(r"[\s.,;]*".join(pairs), "", span) if len(pairs) > 1 else span


class _Reading:
    """One answer being read against one list of options."""

    def __init__(self, span: str, letters: str, options: Sequence[str]) -> None:
        self.span, self.letters = span, letters
        texts = [plain(option) for option in options]
        # An empty text, or one that two options share, points at nothing.
        self.texts = {
            text: letter for text, letter in zip(texts, letters, strict=True) if text and texts.count(text) == 1
        }

    def letter(self) -> str | None:
        bare = self.span.strip(" \t\n.,;:!?\"'()[]")
        if len(bare) == 1 and bare.upper() in self.letters:
            return bare.upper()
        if plain(self.span) in self.texts:
            return self.texts[plain(self.span)]
        tiers: tuple[Callable[[], Iterator[_Mention]], ...] = (self._verdicts, self._mentions, self._capitals)
        for tier in tiers:
            last = next((mention for mention in reversed(list(tier())) if not self._denied(mention)), None)
            if last:
                return self._settle(last)
        return self._only_text()

    def _verdicts(self) -> Iterator[_Mention]:
        """The label that the answer begins with, then every "answer is …" and "… is correct", in order."""
        found = [self._text_at(match.end()) or self._letter_at(match.end()) for match in VERDICT.finditer(self.span)]
        turns = [
            self._letter_at(match.end()) for match in TURN.finditer(self.span) if self.span[match.end() :][:1].isupper()
        ]
        verdicts = [mention for mention in (self._label(), *found, *turns) if mention]
        verdicts += [mention for mention in self._capitals() if IS_RIGHT.match(self.span, mention.stop)]
        yield from sorted(verdicts, key=lambda mention: mention.start)

    def _mentions(self) -> Iterator[_Mention]:
        for match in MENTION.finditer(self.span):
            mention = self._letter_at(match.end())
            if mention:
                yield mention

    def _capitals(self) -> Iterator[_Mention]:
        """Capitals that stand alone: in no word, contraction or initialism (D.C.), no article A, no pronoun I."""
        pattern = rf"(?<![A-Za-z0-9'’])(?<![A-Za-z]\.)[{self.letters}](?![A-Za-z0-9]|['’][A-Za-z]|\.[A-Za-z]\b)"
        for match in re.finditer(pattern, self.span):
            mention = _Mention(match[0], match.start(), match.end())
            if not self._is_word(mention) and not NUMBERED_THING.search(self._behind(mention)):
                yield mention

    def _behind(self, mention: _Mention) -> str:
        return self.span[max(mention.start - BEHIND, 0) : mention.start]

    def _is_word(self, mention: _Mention) -> bool:
        """Whether an A is the article, an I the pronoun."""
        if mention.letter not in "AI" or not NEXT_WORD.match(self.span, mention.stop):
            return False
        return mention.letter == "I" or not GOES_ON.match(self.span, mention.stop)

    def _label(self) -> _Mention | None:
        """ "B) left", "(b) left", "B: left", "B left": the letter that the answer begins with."""
        match = re.match(
            rf"[(\[\"']*([{self.letters}{self.letters.lower()}])(?:[)\].:]+(?![A-Za-z]\.)|\s+[-–—]\s|,)", self.span
        )
        if match:
            return _Mention(match[1].upper(), match.start(1), match.end(1))
        words = self.span.split(maxsplit=1)
        if len(words) == 2 and words[0] in self.letters and self.texts.get(plain(words[1])) == words[0]:
            return _Mention(words[0], 0, 1)
        return None

    def _letter_at(self, place: int) -> _Mention | None:
        match = re.compile(rf"([{self.letters}{self.letters.lower()}])(?![A-Za-z0-9]|['’][A-Za-z]|\.[A-Za-z]\b)").match(
            self.span, place
        )
        if not match:
            return None
        mention = _Mention(match[1].upper(), place, match.end())
        return None if self._is_word(mention) else mention

    def _text_at(self, place: int) -> _Mention | None:
        """An option's text at the beginning of what follows a verdict, the longest first."""
        rest = plain(self.span[place:])
        for text in sorted(self.texts, key=len, reverse=True):
            if len(text) > 1 and re.match(re.escape(text) + r"(?!\w)", rest):
                return _Mention(self.texts[text], place, place + 1)
        return None

    def _denied(self, mention: _Mention) -> bool:
        return bool(DENIED_BEFORE.search(self._behind(mention)) or DENIED_AFTER.match(self.span, mention.stop))

    def _settle(self, last: _Mention) -> str | None:
        """The last mention's letter, unless another letter stands beside it."""
        for other in self._capitals():
            if other.letter == last.letter or abs(other.start - last.start) > BESIDE or self._denied(other):
                continue
            between = (
                self.span[last.stop : other.start] if other.start > last.start else self.span[other.stop : last.start]
            )
            if JOINED.fullmatch(between):
                return None
        return last.letter

    def _only_text(self) -> str | None:
        """The one option whose text occurs undenied as whole words; a text inside a longer one does not count."""
        line = " ".join(self.span.casefold().split())
        taken: list[tuple[int, int]] = []
        named = set()
        for text in sorted(self.texts, key=len, reverse=True):
            for match in re.finditer(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", line):
                if any(start < match.end() and match.start() < stop for start, stop in taken):
                    continue
                taken.append(match.span())
                before = line[max(match.start() - BEHIND, 0) : match.start()]
                if not (DENIED_BEFORE.search(before) or DENIED_AFTER.match(line, match.end())):
                    named.add(self.texts[text])
        return named.pop() if len(named) == 1 else None
