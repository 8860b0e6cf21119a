"""A transformers decoder with its head, as the shared-prefix machinery meets it: no vision, no tokenizer.

T packed tokens, E model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longtake.models import attention as registered


class Decoder:
    """Any transformers text model whose attention goes through AttentionInterface (Llama, Qwen2, Qwen2.5-VL's, …).

    Example: Decoder(net.model.language_model, net.lm_head).hidden(embed_TE, position_3T, visual_T, None, Row(layout)).
    """

    def __init__(self, text: Any, lm_head: nn.Linear, *, rope_rows: int) -> None:
        """`rope_rows`: 3 for M-RoPE, 1 for plain positions (the first row of position_3T)."""
        registered.check_shareable(text.config)
        registered.register()
        text.set_attn_implementation(registered.TEXT)
        self.text, self.lm_head, self.rope_rows = text, lm_head, rope_rows

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers, first to last."""
        return self.text.layers

    @property
    def norm(self) -> nn.Module:
        """What the last layer's output goes through."""
        return self.text.norm

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token embeddings [T, E]."""
        return self.text.embed_tokens(ids_T.to(self.text.device))

    def hidden(
        self, embed_TE: Tensor, position_3T: Tensor, visual_T: Tensor, deepstack: Tensor | None, attention: Any
    ) -> Tensor:
        """Decoder over one packed row → last hidden states [T, E] (see protocols.Model). Raises ValueError."""
        if deepstack is not None:
            raise ValueError("this decoder takes no DeepStack features")
        position = position_3T[:, None] if self.rope_rows == 3 else position_3T[:1]
        out = self.text(
            inputs_embeds=embed_TE[None],
            position_ids=position.to(embed_TE.device),
            use_cache=False,
            attention=attention,
        )
        return out.last_hidden_state[0]

    def head(self, hidden_TE: Tensor) -> Tensor:
        """Logits [T, V] in float32 (float64 for a float64 model)."""
        if hidden_TE.dtype in (torch.float32, torch.float64):
            return self.lm_head(hidden_TE)
        return linear(hidden_TE.float(), self.lm_head.weight.float())
