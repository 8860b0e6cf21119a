"""Projectors of NVILA against the reference's numbers and a loop over patches; pooling against the reference's."""

import math

import pytest
import torch
from tests.plain.nvila import loop
from torch import nn
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models.nvila_projector import Blocks, Projector, pooled

ZEROS = [0] * 6


def counted(side, channels, first=0):
    return torch.arange(first, first + side * side * channels, dtype=torch.float64).view(1, side * side, channels)


def sums(y):
    """Σ y and Σ y · (1 … numel)."""
    flat = y.detach().flatten().double()
    return flat.sum().item(), (flat * torch.arange(1, len(flat) + 1)).sum().item()


def test_blocks_of_the_reference() -> None:
    two = [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]
    three = [[1, 2, 3, 5, 6, 7, 9, 10, 11], [4, 0, 0, 8, 0, 0, 12, 0, 0], [13, 14, 15, *ZEROS], [16, 0, 0, *ZEROS]]
    assert Blocks(2)(counted(4, 1, 1))[0].tolist() == two
    assert Blocks(3)(counted(4, 1, 1))[0].tolist() == three
    assert Blocks(2, column_major=True)(counted(4, 1, 1))[0].tolist() == [two[0], two[2], two[1], two[3]]
    first, second = Blocks(2)(counted(4, 2, 1))[0, :2].tolist()
    assert (first, second) == ([1, 2, 3, 4, 9, 10, 11, 12], [5, 6, 7, 8, 13, 14, 15, 16])


@pytest.mark.parametrize(
    ("side", "channels", "edge", "column_major", "shape", "want"),
    [
        (5, 3, 2, False, (9, 12), 165350),
        (5, 3, 2, True, (9, 12), 143750),
        (5, 3, 3, False, (4, 27), 164405),
        (5, 3, 3, True, (4, 27), 149825),
        (32, 2, 2, False, (256, 8), 2862041088),
        (32, 2, 3, False, (121, 18), 2950680832),
    ],
)
def test_sums_of_the_reference(side, channels, edge, column_major, shape, want) -> None:
    made = Blocks(edge, column_major)(counted(side, channels))
    assert made.shape == (1, *shape)
    assert sums(made) == (sum(range(side * side * channels)), want)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("edge", [2, 3])
@pytest.mark.parametrize("column_major", [False, True])
def test_blocks_are_the_loop(side, edge, column_major) -> None:
    patches = torch.randn(2, side * side, 3, generator=torch.Generator().manual_seed(side))
    assert torch.equal(Blocks(edge, column_major)(patches), loop(patches, edge, column_major))


def numbered(kind):
    """The projector of the reference check: 4 channels to a width of 3."""
    made = Projector(kind, 4, 3)
    norms = {id(part.weight) for part in made.modules() if isinstance(part, nn.LayerNorm)}
    with torch.no_grad():
        for x in made.parameters():
            v = ((7 * torch.arange(x.numel()) % 13) - 6) / 20
            x.copy_((1 + v / 10 if id(x) in norms else v).view_as(x))
    return made


@pytest.mark.parametrize(
    ("kind", "want", "first"),
    [
        ("mlp_downsample", (-5.399814, -75.255415), [-0.254109, 0.014903, -0.223220]),
        ("mlp_downsample_2x2_fix", (-5.399814, -75.255415), [-0.254109, 0.014903, -0.223220]),
        ("mlp_downsample_3x3_fix", (-2.411355, -14.929500), [-0.420607, 0.130278, -0.298053]),
    ],
)
def test_whole_projector_of_the_reference(kind, want, first) -> None:
    made = numbered(kind)(torch.arange(100).float().sin().view(1, 25, 4))
    assert_close(torch.tensor(sums(made)), torch.tensor(want), rtol=1e-5, atol=1e-5)
    assert_close(made[0, 0], torch.tensor(first), rtol=0, atol=2e-6)


def test_names_and_shapes_are_the_checkpoints() -> None:
    def shapes(kind):
        return {name: tuple(x.shape) for name, x in Projector(kind, 4, 3).state_dict().items()}

    def layer(number, *shape):
        return {f"layers.{number}.weight": shape, f"layers.{number}.bias": shape[:1]}

    assert shapes("mlp_downsample_2x2_fix") == layer(1, 16) | layer(2, 3, 16) | layer(4, 3, 3)
    three = layer(1, 36) | layer(2, 12, 36) | layer(4, 12) | layer(5, 3, 12) | layer(7, 3, 3)
    assert shapes("mlp_downsample_3x3_fix") == three
    assert shapes("mlp3x_gelu") == layer(0, 3, 4) | layer(2, 3, 3) | layer(4, 3, 3)
    assert shapes("linear") == {"layers.weight": (3, 4), "layers.bias": (3,)}
    assert Projector("identity", 4, 4).state_dict() == {}


def test_flat_kinds_take_each_patch_alone() -> None:
    patches = counted(3, 4) / 36
    assert torch.equal(Projector("identity", 4, 4)(patches), patches)
    line, deep = Projector("linear", 4, 3).double(), Projector("mlp2x_gelu", 4, 3).double()
    assert_close(line(patches), patches @ line.layers.weight.T + line.layers.bias)
    first = patches @ deep.layers[0].weight.T + deep.layers[0].bias
    gelu = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    assert_close(deep(patches), gelu @ deep.layers[2].weight.T + deep.layers[2].bias)


def test_what_is_not_known_is_refused() -> None:
    for kind in ("mlp_downsample_3x3_s2", "mlp0x_gelu", "mlp2x_gelu_more", "None"):
        with pytest.raises(UserError, match="unsupported projector"):
            Projector(kind, 4, 3)
    with pytest.raises(UserError, match="an identity for a projector does not fit"):
        Projector("identity", 4, 3)
    with pytest.raises(UserError, match="cannot be column-major"):
        Projector("mlp_downsample_2x2_fix", 4, 3, column_major=True)


def test_pools_are_the_references() -> None:
    film = torch.arange(192.0).view(4, 16, 3)
    first, second = (pooled(film, [pool]) for pool in ((2, 1, 1), (4, 2, 2)))
    line = torch.full((1, 3), -1.0)
    whole = torch.cat([first[:16], line, first[16:], line, second, line])  # the reference's newline is -1
    assert whole.shape == (39, 3)
    assert sums(whole) == (10305, 718362)
    assert (whole[0].tolist(), whole[34].tolist()) == ([24, 25, 26], [79.5, 80.5, 81.5])
    assert torch.equal(pooled(film, [(2, 1, 1), (4, 2, 2)]), torch.cat([first, second]))


def test_pools_that_do_not_fill_a_film() -> None:
    for pool in ((8, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3)):
        with pytest.raises(ValueError, match="no multiple of the pool"):
            pooled(torch.zeros(12 if pool[0] == 8 else 4, 16, 3), [pool])
