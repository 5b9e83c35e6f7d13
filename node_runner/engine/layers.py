"""A span's layers as transformers runs them: right for every family, quick for none."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from node_runner.engine.attention import Pack, Score, attend

NAME = "far_packed"
"""Under which transformers knows our attention."""

Layers = Callable[[torch.Tensor, Pack], torch.Tensor]
"""All layers of a span: hidden states ``[rows, hidden]`` of a pack, to the same shape."""


class TransformersLayers:
    """The decoder's own forward, without embedding and final norm, which are the edge's."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __call__(self, hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
        output: torch.Tensor = self._decoder(
            inputs_embeds=hidden[None],
            position_ids=pack.positions[None],
            use_cache=False,
            pack=pack,
        ).last_hidden_state
        return output[0]


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    pack: Pack,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """:func:`attend`, as transformers calls it: heads before rows, weights beside the output."""
    attended = attend(
        pack,
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        Score(scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux),
    )
    return attended[None], None


AttentionInterface.register(NAME, packed_attention)
