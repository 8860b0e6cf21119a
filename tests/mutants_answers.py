"""Breaks of answering: decoding, its recordings, drawing; see mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

LOCAL = "engines/test_local.py::test_"
ROLLOUT = "engines/test_rollout.py::test_"
GRAPH = "engines/test_graph.py::test_"
TESTS = {  # which tests must notice a break in which file
    "engines/decode.py": (
        f"{LOCAL}answers_are_those_of_the_engine_that_keeps_nothing[float64]",
        f"{LOCAL}room_that_grows_changes_nothing[float64-1-9]",
        f"{LOCAL}an_answer_ends_with_its_end_token[float64-many]",
        f"{ROLLOUT}a_rollout_gives_the_answers_of_generate[full-1000000]",
        f"{ROLLOUT}kept_prefills_score_what_was_sampled[alora-graph]",
        f"{GRAPH}a_static_step_is_the_growing_one[float64]",
        f"{GRAPH}answers_that_leave[float64]",
    ),
    "engines/graph.py": (
        f"{LOCAL}answers_are_those_of_the_engine_that_keeps_nothing[float64]",
        f"{GRAPH}recorded_steps_are_the_growing_ones[float64]",
        f"{GRAPH}answers_that_leave[float64]",
        f"{GRAPH}a_recording_that_gives_other_numbers[float64]",
    ),
    "engines/local.py": (
        f"{LOCAL}answers_are_those_of_the_engine_that_keeps_nothing[float64]",
        f"{LOCAL}an_answer_ends_with_its_end_token[float64-many]",
        f"{ROLLOUT}kept_prefills_score_what_was_sampled[full-graph]",
        f"{ROLLOUT}prefixes_are_taken_from_where_they_are_kept[alora]",
    ),
    "engines/loop.py": (
        "engines/test_sample.py",
        f"{LOCAL}answers_are_those_of_the_engine_that_keeps_nothing[float64]",
        f"{LOCAL}an_answer_ends_with_its_end_token[float64-many]",
    ),
}

DECODE = breaks(
    "engines/decode.py",
    ("[question // answers for question", "[question % len(self._asked) for question", "answers dealt in turn"),
    ("tokens.repeat_interleave(answers, 0)", "tokens.repeat(answers, 1, 1, 1)", "the header's keys of other questions"),
    (
        "self.answers = [self.answers[place] for place in alive]",
        "self.answers = list(alive)",
        "answers mixed up when others leave",
    ),
    ("(k[index], v[index])", "(k[: len(index)], v[index])", "keys of answers that left"),
    (
        "self._owners[place] for place in alive",
        "self._owners[place] for place in range(len(alive))",
        "prefixes of answers that left",
    ),
    (
        "own_k[:, :, : self.at + 1], own_v[:, :, : self.at + 1]",
        "own_k[:, :, : max(self.at, 1)], own_v[:, :, : max(self.at, 1)]",
        "the new token does not see itself",
    ),
    ("for depth in (0, 1):", "for depth in (1,):", "films that are shared unseen"),
    ("                film = NOTHING\n", "                pass\n", "a question without a film reads the last one"),
    (
        "levels.append(Level(k, v, filling, readers))",
        "levels.append(Level(k, v, None, readers))",
        "what fills up is read",
    ),
    (
        "index_fill_(0, self._place_1, 0.0)",
        "index_fill_(0, self._place_1, LOW)",
        "the new token does not see itself in a recording",
    ),
    (
        "self._unseen_t = self._unseen(room + more, self.at)",
        "self._unseen_t = self._unseen(room + more, 0)",
        "earlier tokens unseen when the room has grown",
    ),
)

RECORDED = breaks(
    "engines/graph.py",
    ("            number.add_(1)", "            number.add_(2)", "positions that skip one"),
    ("        self._back_to(before)\n        got_AV", "        got_AV", "a token taken twice"),
    ("self._proved = apart <= AGREE[self._model.net.dtype]", "self._proved = True", "other numbers pass"),
)

ENGINE = breaks(
    "engines/local.py",
    (
        "starts = [int(prompt.position_3P.max()) + 1 for",
        "starts = [int(prompt.position_3P.max()) for",
        "positions one too low",
    ),
    ("if token in self.model.end_ids", "if token == self.model.end_ids[0]", "answers not cut at their end token"),
    ("kept[:-1] if end else kept", "kept", "the end token in the text"),
    (".repeat_interleave(per_prompt, 0)", ".repeat(per_prompt, 1)", "answers dealt in turn"),
    ('"stop" if end else "length"', '"length"', "who ended is not known"),
    ("if self.prefixes is None:", "if True:", "prefixes computed again and again"),
)

LOOP = breaks(
    "engines/loop.py",
    ("(chance_A * share_AV[:, -1])[:, None]", "(0.5 * share_AV[:, -1])[:, None]", "the draw forgotten"),
    ("self.chance_At[:, step])", "self.chance_At[:, 0])", "one draw an answer"),
    ("logits_AV / torch.where(self.heat_A1 > 0, self.heat_A1, 1)", "logits_AV", "log-probabilities at temperature 1"),
    ("logits_AV.double() / heat_A1.clamp(min=1e-6)", "logits_AV.double()", "drawn at temperature 1"),
    ("Philox(key=draw.seed)", "Philox(key=len(draws))", "the seed forgotten"),
    (
        "self.chance_At[alive], self.heat_A1[alive]",
        "self.chance_At[: len(alive)], self.heat_A1[alive]",
        "draws of answers that left",
    ),
    (
        "next_A[alive_A], done_A[alive_A]",
        "next_A[: len(alive_A)], done_A[alive_A]",
        "tokens of answers that left",
    ),
)

MUTANTS = ENGINE + LOOP + DECODE + RECORDED
