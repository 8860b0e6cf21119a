"""A prompt and its answers as one row for anybody's model, against a loop over tokens."""

import subprocess
import sys

import pytest
import torch

import longtake
from longtake.errors import UserError
from longtake.records import Layout


@pytest.mark.parametrize("rows", [1, 3])
def test_a_packed_row_as_a_loop_would_pack_it(rows):
    prompt, answers = [5, 6, 7, 8], [[1, 2, 3], [], [4], [9, 1]]
    positions = None if rows == 1 else torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [0, 1, 2, 1]])
    row = longtake.pack_row(prompt, answers, positions)
    assert row.layout == Layout(((4, (2, 0, 0, 1)),))
    assert row.ids_1T.tolist() == [[5, 6, 7, 8, 1, 2, 9]]
    begin = 4 if rows == 1 else 3
    first = torch.arange(4)[None] if rows == 1 else positions
    after = torch.tensor([begin, begin + 1, begin]).expand(rows, -1)
    want = torch.cat([first, after], 1)
    assert torch.equal(row.position_ids, want if rows == 1 else want[:, None])
    assert row.predict_R.tolist() == [3, 4, 5, 3, 3, 6]
    assert row.target_R.tolist() == [1, 2, 3, 4, 9, 1]
    assert [own.tolist() for own in row.per_answer(row.target_R)] == answers
    assert torch.equal(longtake.pack_row(torch.tensor([prompt]), list(map(torch.tensor, answers))).ids_1T, row.ids_1T)


def test_log_probabilities_are_of_the_targets():
    row = longtake.pack_row([1, 2, 3], [[4, 5], [6, 7]])
    logits = torch.randn(1, 4, 60, dtype=torch.bfloat16)
    want = [(logits[0, i].float() / 0.7).log_softmax(0)[t].item() for i, t in enumerate(row.target_R.tolist())]
    found = row.score(logits, 0.7)
    assert found.logprob_R.tolist() == pytest.approx(want, rel=1e-6)
    sure = torch.zeros(1, 4, 60).index_fill(2, torch.tensor(5), 100.0)
    assert row.score(sure).entropy_R.tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    with pytest.raises(ValueError, match=r"logits are \(1, 5\)"):
        row.score(torch.zeros(1, 5, 60))


@pytest.mark.parametrize(
    ("prompt", "answers", "positions", "says"),
    [
        ([], [[1]], None, "nothing to pack"),
        ([1, 2], [[3]], torch.arange(2), "positions do not fit"),
        (torch.ones(2, 3, dtype=torch.int64), [[3]], None, "one row at a time"),
    ],
)
def test_what_cannot_be_packed_is_refused(prompt, answers, positions, says):
    with pytest.raises(UserError, match=says):
        longtake.pack_row(prompt, answers, positions)


def test_importing_longtake_brings_nothing():
    code = "import sys, longtake; longtake.__version__; sys.exit(bool({'torch', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'door'"):
        longtake.door  # noqa: B018
