"""A span's layers as transformers runs them: for every family, and slower than fused layers."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from node_runner.engine.attention.interface import ScoreModifier
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend
from node_runner.engine.model.families import Family

ATTENTION = "far_ragged"
"""The name under which transformers knows our attention."""

LayerStack = Callable[[torch.Tensor, RaggedBatch], torch.Tensor]
"""All layers of a span: hidden states ``[rows, hidden]`` of a batch, to hidden states of that
shape."""


class TransformersLayers:
    """A :data:`LayerStack` of a decoder's own forward, which has lost its embedding and norm."""

    def __init__(self, decoder: Any, family: Family) -> None:
        self._decoder = decoder
        if not family.passes_kwargs:
            for layer in decoder.layers:
                layer.self_attn.register_forward_pre_hook(self._with_batch, with_kwargs=True)

    def __call__(self, hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        self._batch = batch
        output: torch.Tensor = self._decoder(
            inputs_embeds=hidden[None],
            position_ids=batch.positions[None],
            use_cache=False,
            ragged_batch=batch,
        ).last_hidden_state
        return output[0]

    def _with_batch(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"ragged_batch": self._batch}


def ragged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    ragged_batch: RaggedBatch,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """:func:`attend`, as transformers' `AttentionInterface` calls it.

    Args:
        module: The layer's attention.
        query: ``[1, heads, rows, key_dim]``.
        key: ``[1, kv_heads, rows, key_dim]``.
        value: ``[1, kv_heads, rows, value_dim]``.
        ragged_batch: What the rows belong to.
        scaling: As in :class:`ScoreModifier`.
        softcap: As in :class:`ScoreModifier`.
        s_aux: Attention sinks, ``[heads]``.

    Returns:
        ``[1, rows, heads, value_dim]``, and no attention weights.
    """
    if "sliding_window" in others:
        window = others["sliding_window"]
    else:  # qwen2_moe leaves the window to the mask, which is not made here
        window = getattr(module, "sliding_window", None)
    attended = attend(
        ragged_batch,
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        ScoreModifier(scaling=scaling, window=window, softcap=softcap, sinks=s_aux),
    )
    return attended[None], None


AttentionInterface.register(ATTENTION, ragged_attention)
