"""What goes into the decoder: token embeddings with features at the visual places.

T packed tokens, N visual tokens, L feature levels, E model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.protocols import Model
from longtake.records import Features


def fill(
    model: Model, ids_T: Tensor, visual_T: Tensor, films: Sequence[Features], mine_N: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Input of a row: token embeddings [T, E] with features at the visual places, and DeepStack [L - 1, N, E] or None.

    `films` are in row order; gradients flow into embeddings and features. mine_N: which of their tokens these are,
    where other ranks have the others. Raises ValueError unless they fill the places.
    """
    embed_TE = model.embed(ids_T)
    place_N = visual_T.nonzero()[:, 0].to(embed_TE.device)
    count = sum(film.level_LNE.shape[1] for film in films)
    if mine_N is None and len(place_N) != count:
        raise ValueError(f"the row has {len(place_N)} visual places, its {len(films)} films do not fill them")
    if not films:
        return embed_TE, None
    level_LNE = torch.cat([film.level_LNE for film in films], dim=1)
    if mine_N is not None:
        level_LNE = level_LNE[:, mine_N.to(level_LNE.device)]
    level_LNE = level_LNE.to(embed_TE.device, embed_TE.dtype)
    embed_TE = embed_TE.index_copy(0, place_N, level_LNE[0])
    return embed_TE, level_LNE[1:] if len(level_LNE) > 1 else None
