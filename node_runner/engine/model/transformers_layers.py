"""A span's layers as transformers runs them: right for every family, quick for none."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from node_runner.engine.attention.interface import ScoreModifier
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend
from node_runner.engine.model.families import Family

NAME = "far_packed"
"""Under which transformers knows our attention."""

LayerStack = Callable[[torch.Tensor, RaggedBatch], torch.Tensor]
"""All layers of a span: hidden states ``[rows, hidden]`` of a pack, to the same shape."""


class TransformersLayers:
    """The decoder's own forward, without embedding and final norm, which are the edge's."""

    def __init__(self, decoder: Any, family: Family) -> None:
        self._decoder = decoder
        if not family.passes_on:
            for layer in decoder.layers:
                layer.self_attn.register_forward_pre_hook(self._with_pack, with_kwargs=True)

    def __call__(self, hidden: torch.Tensor, pack: RaggedBatch) -> torch.Tensor:
        self._pack = pack
        output: torch.Tensor = self._decoder(
            inputs_embeds=hidden[None],
            position_ids=pack.positions[None],
            use_cache=False,
            pack=pack,
        ).last_hidden_state
        return output[0]

    def _with_pack(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"pack": self._pack}


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    pack: RaggedBatch,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """:func:`attend`, as transformers calls it: heads before rows, weights beside the output."""
    if "sliding_window" in others:
        window = others["sliding_window"]
    else:  # qwen2_moe leaves it to the mask, which we do not get
        window = getattr(module, "sliding_window", None)
    attended = attend(
        pack,
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        ScoreModifier(scaling=scaling, window=window, softcap=softcap, sinks=s_aux),
    )
    return attended[None], None


AttentionInterface.register(NAME, packed_attention)
