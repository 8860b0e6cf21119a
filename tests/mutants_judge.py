"""Breaks of judging: what is asked, how it is read, what it comes to, how it is counted; see mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

JUDGING = ("train/test_judging.py",)
TESTS = {  # which tests must notice a break in which file
    "engines/remote.py": ("engines/test_remote.py",),
    "rewards/verdict.py": ("rewards/test_verdict.py",),
    "train/asking.py": JUDGING,
    "train/judged.py": JUDGING,
    "train/judging.py": JUDGING,
    "train/narrative.py": JUDGING,
}

MUTANTS = (
    *breaks(
        "train/judging.py",
        ('{"AB": (0, 1), "BA": (1, 0)}', '{"AB": (0, 1), "BA": (0, 1)}', "both orders are the same one"),
        ("if named[0] == named[1] else", "if True else", "what flips is kept"),
        ("    if None in named:", "    if named == [None, None]:", "one tie of two is no tie"),
        ("scores.index(max(scores))", "scores.index(min(scores))", "the worse is preferred"),
        ("if any(one.error for one in verdicts)", "if all(one.error for one in verdicts)", "one failure is forgotten"),
        ("if not all(one.said for", "if not any(one.said for", "half a verdict is a verdict"),
        ("if set(self.correct) == {True, False}", "if True in self.correct", "two right answers count"),
        ("if said.text.strip()]", "]", "empty answers are judged"),
        ('text = MARK.sub("", text)', "pass", "an answer may speak to the judge as its chat does"),
    ),
    *breaks(
        "train/judged.py",
        ('counts["kept"] + counts["flipped"]', "len(judged)", "flip rate of all pairs"),
        ("0.5 * (len(known) - len(chosen))", "0.0", "undecided pairs are wrong"),
        ('one.outcome not in ("same", "failed")', "True", "what was not judged counts"),
        ("match.correct[one.better], match.correct[worse]", "*match.correct", "right and wrong swapped"),
        ("remote.tokens_out * price[1]", "remote.tokens_out * price[0]", "one price for both ways"),
        ("(right := chose_right(one)) is not None]", "(right := chose_right(one))]", "only right choices count"),
    ),
    *breaks(
        "train/narrative.py",
        ("/ context.clip_seconds + 0.5)", "/ context.clip_seconds)", "a last part of almost full length joins"),
        ("min(policy.end, duration)", "duration", "the window's end is forgotten"),
        ("(end - start) * k / context.clips", "end * k / context.clips", "clips begin outside the window"),
    ),
    *breaks(
        "train/asking.py",
        ("[*failed, reply]", "[*self._found.get(key, []), reply]", "what is made again counts twice"),
        ("if not replies[-1].error}", "}", "failures are not asked again"),
        ("max(0, reply.calls - 1)", "reply.calls", "first tries are retries"),
    ),
    *breaks(
        "rewards/verdict.py",
        ("return said[0] if len(set(said)) == 1 else None", "return said[0]", "the first of two verdicts wins"),
        ('LETTER = r"(?-i:([AB]))', 'LETTER = r"(?i:([AB]))', "the article is a letter"),
        ("LOWEST <= value <= HIGHEST", "value <= HIGHEST", "a score of 0"),
        ("text, flags=re.IGNORECASE)[-1]", "text, flags=re.IGNORECASE)[0]", "the thinking is read"),
    ),
    *breaks(
        "engines/remote.py",
        ("2.0 ** (failed - 1)", "2.0 * (failed - 1)", "waits do not double"),
        ("len(troubles) > self.retries", "len(troubles) >= self.retries", "one try less"),
        ("return _told(state) or min", "return min", "Retry-After is not honoured"),
        ("_told(state) > LONGEST_TOLD", "False", "waits for a day"),
        ('"later" if status in AGAIN or status >= 500 else "never"', '"later"', "what is wrong in itself again"),
        ("            self._takes_schema = False\n", "", "a schema that is refused again"),
        ("not (empty or text.strip())", "False", "an empty answer is one"),
    ),
)
