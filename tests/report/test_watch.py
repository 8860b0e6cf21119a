"""What curves say by themselves, charts of several lines, and which model is compared with which."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.test_page import page

from longtake.report import lines, watch
from longtake.report.charts import H, W
from longtake.report.files import EvalFile, Run, RunFile, Setting
from longtake.report.models import family

STEPS = 40
PLAIN = str.maketrans({"\u202f": " ", "\u2212": "-"})


def line(first: float, last: float, steps: int = STEPS) -> tuple[tuple[float, float], ...]:
    """A straight line with a small zigzag."""
    slope = (last - first) / (steps - 1)
    return tuple((float(i), first + slope * i + 0.001 * (-1) ** i) for i in range(steps))


@pytest.mark.parametrize(
    ("truth", "length", "tone", "said"),
    [
        ((0.5, 0.4), (20, 33), "bad", "true accuracy fell from 49 % to 41 % and answers grew from 21 to 32 tokens"),
        ((0.5, 0.4), (20, 20), "bad", "while true accuracy fell from 49 % to 41 %: it is gamed."),
        ((0.5, 0.5), (20, 33), "bad", "but answers grew from 21 to 32 tokens: it may be gamed."),
        ((0.5, 0.5), (20, 20), "plain", "and true accuracy did not (from 50 % to 50 %)."),
        ((0.5, 0.7), (20, 33), "good", "and true accuracy with it, from 52 % to 68 %; answers grew"),
    ],
)
def test_a_rising_score_is_held_against_truth_and_length(
    truth: tuple[float, float], length: tuple[float, float], tone: str, said: str
) -> None:
    (told,) = watch.gamed(line(0, 1), line(*truth), line(*length))
    assert told.tone == tone
    assert said in told.text.translate(PLAIN)
    assert "score rose from 0.0897 to 0.91" in told.text
    if truth == (0.5, 0.4):
        assert "correlates -1.00 with true accuracy" in told.text.translate(PLAIN)


def test_a_score_that_does_not_rise_or_without_truth() -> None:
    (told,) = watch.gamed(line(1, 0), line(0.5, 0.4), line(20, 33))
    assert (told.tone, "score fell from 0.91 to 0.0897" in told.text) == ("plain", True)
    (told,) = watch.gamed(line(0, 0), (), ())
    assert "did not rise beyond chance" in told.text
    (told,) = watch.gamed(line(0, 1), (), line(20, 33))
    assert "how many answers are right is not known, and answers grew" in told.text
    assert watch.gamed(line(0, 1, 3), line(0, 1, 3), ()) == ()


def test_likelihood_displacement_is_named() -> None:
    (told,) = watch.displaced(line(0, -1), line(0, -3))
    assert "their reward fell from -0.0897 to -0.91, that of the rejected ones from -0.269" in told.text.translate(
        PLAIN
    )
    assert watch.displaced(line(0, 1), line(0, -3)) == watch.displaced(line(0, 0), line(0, 0)) == ()
    assert watch.displaced(line(0, -1, 3), ()) == ()
    assert "rejected" not in watch.displaced(line(0, -1), line(0, 1))[0].text


def test_a_jump_within_the_noise_is_no_move() -> None:
    noisy = tuple((float(i), (i * 7919) % 13 / 13) for i in range(STEPS))
    found = watch.move(noisy)
    assert found is not None
    assert found.way == 0
    assert found.early.n == STEPS // watch.ENDS


def test_lines_of_one_unit_share_a_scale_and_others_have_their_own() -> None:
    short, empty = lines.Line("held out", "before", line(0.5, 0.7, 4)), lines.Line("none", "older", ())
    plot = lines.together("Accuracy", [lines.Line("training", "after", line(0.5, 0.9)), short, empty], share=True)
    assert plot is not None
    assert [trace.name for trace in plot.traces] == ["training", "held out"]
    assert plot.note.translate(PLAIN) == "training 51 % → 89 %, held out 50 % → 70 %"
    ends = [trace.marks[-1].y for trace in plot.traces]
    assert ends[0] < ends[1], "the higher value stands higher"
    assert lines.together("Accuracy", [empty]) is None
    both = [lines.Line("score", "after", line(0, 1)), lines.Line("length", "before", line(20, 33), "tokens")]
    plot = lines.own_ranges("Race", both, ())
    assert plot is not None
    assert abs(plot.traces[0].marks[-1].y - plot.traces[1].marks[-1].y) < 0.5
    assert all(0 <= mark.x <= W and 0 <= mark.y <= H for trace in plot.traces for mark in trace.marks)
    assert lines.own_ranges("Race", both[:1], ()) is None


def test_a_line_that_does_not_move_stays_inside_its_chart() -> None:
    flat = lines.Line("flat", "after", tuple((float(i), 0.3) for i in range(5)))
    for plot in (lines.together("a", [flat]), lines.own_ranges("a", [flat, flat], ())):
        assert plot is not None
        assert all(0 <= mark.y <= H for trace in plot.traces for mark in trace.marks)


def run(name: str, stage: str, model: str = "", tested: str = "") -> Run:
    found = EvalFile((Setting(8, 1.0, 0.5),), tested) if tested else None
    return Run(name, Path(name), RunFile(stage, config={"model": model}), (), (), (), found, None)


TRAINED = [run("sft", "sft", "hub/base"), run("grpo", "grpo", "x/sft/model"), run("ppo", "ppo", "x/sft/model")]


def compared(*runs: Run) -> tuple[str, list[str], list[str]]:
    found = family(runs)
    assert found is not None
    named = found.before.label if found.before else ""
    return named, [model.label for model in found.after], [model.label for model in found.older]


def test_a_model_is_compared_with_the_one_it_was_trained_from() -> None:
    tested = [run(f"eval/{name}", "eval", "", f"x/{name}/model") for name in ("sft", "grpo", "ppo")]
    base = run("eval/base", "eval", "", "hub/base")
    assert compared(*TRAINED, base, *tested) == ("sft", ["grpo", "ppo"], ["base"])
    assert compared(*TRAINED, base, tested[0]) == ("base", ["sft"], [])
    assert compared(*TRAINED, tested[1], tested[2]) == ("grpo", ["ppo"], []), "the last two"
    assert compared(*TRAINED, tested[2]) == ("", ["ppo"], [])
    found = family([*TRAINED, base, *tested])
    assert found is not None
    assert [model.tone for model in found.all] == ["older", "before", "after", "also0"]
    assert family(TRAINED) is None


def test_a_model_that_says_it_was_trained_from_itself() -> None:
    runs = [run("base", "sft", "x/base/model"), run("eval/base", "eval", "", "x/base/model")]
    assert compared(*runs) == ("", ["base"], [])


def test_curves_that_are_told_together_are_not_told_twice(everything: Path) -> None:
    html, seen = page(everything)
    for said in (
        "Pairs in the right order training", "Reward of both answers chosen", "Score, truth and length each over its",
        "Distance to the start (KL), nats an answer", "Explained variance of the returns",
        "the chosen answers became less likely too", "it is gamed",
    ):  # fmt: skip
        assert said in seen.text, said
    assert html.count("<b>Lead of the chosen answer</b>") == 2, "reward and dpo"
    assert "<b>Margin</b>" not in html


def test_many_models_have_a_line_each(everything: Path) -> None:
    _, seen = page(everything)
    for said in (
        "with grpo, ",
        "% with dpo and ",
        "sft and what was trained from it",
        "dpo after sft: by kind and hops",
    ):
        assert said in seen.text, said
    assert "Model: grpo." in seen.text


def test_an_engine_that_computes_something_else_is_named() -> None:
    assert watch.apart((), ()) == ()
    (told,) = watch.apart(line(0, 0), line(0, 0))
    assert told.tone == "plain"
    assert "at most 0.001 nats a token" in told.text
    assert "0 % of answers were left out" in told.text.translate(PLAIN)
    (told,) = watch.apart(line(0, 0.4), line(0.1, 0.3))
    assert told.tone == "bad"
    assert "20 % of answers were left out: engine and trainer do not compute the same network" in told.text.translate(
        PLAIN
    )
