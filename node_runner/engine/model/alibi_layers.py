"""Layers whose attention transformers does not let us replace: bloom's and falcon's.

Both compute query, key and value in one product, and both give their layers an argument `alibi`
that only attention uses. Here attention is ours, and the ragged batch comes to it as that argument.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

from node_runner.engine.attention.interface import ScoreModifier
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend
from node_runner.engine.model.families import Config, Family


class AlibiLayers:
    """A :data:`LayerStack` of a decoder of bloom or falcon, whose attention is replaced."""

    def __init__(self, decoder: Any, family: Family) -> None:
        config = decoder.config
        self._blocks = getattr(decoder, family.layers)
        score = _score(config, decoder.device)
        for index, block in enumerate(self._blocks):
            block.self_attention = _Attention(block.self_attention, index, family.kv(config), score)
        self._rotary = decoder.rotary_emb if score.by_head is None else None

    def __call__(self, hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        hidden = hidden[None]
        arguments = {"alibi": batch, "attention_mask": None}
        if self._rotary is not None:
            position_ids = batch.positions[None]
            arguments["position_embeddings"] = self._rotary(hidden, position_ids=position_ids)
        for block in self._blocks:
            hidden, _ = block(hidden, **arguments)
        return hidden[0]


class _Attention(nn.Module):
    """Attention in place of `FalconAttention`, and of `BloomAttention`, which adds the residual
    itself."""

    def __init__(
        self, original: Any, index: int, shape: tuple[int, int, int], score: ScoreModifier
    ) -> None:
        super().__init__()
        self.query_key_value = original.query_key_value
        self.dense = original.dense
        self._index = index
        self._kv_heads, self._head_dim, _ = shape
        self._score = score

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None = None,
        *,
        alibi: RaggedBatch,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        rows = hidden.shape[1]
        # For each head of keys: its queries, the key, the value.
        mixed = self.query_key_value(hidden).view(rows, self._kv_heads, -1, self._head_dim)
        queries, keys, values = mixed[:, :, :-2].flatten(1, 2), mixed[:, :, -2], mixed[:, :, -1]
        if position_embeddings is not None:
            cos, sin = (part[0] for part in position_embeddings)
            queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        attended = attend(alibi, self._index, queries, keys, values, self._score)
        output: torch.Tensor = self.dense(attended.reshape(1, rows, -1))
        return output if residual is None else residual + output, None


def _score(config: Config, device: torch.device) -> ScoreModifier:
    """How the attention of all layers scores."""
    slopes = _slopes(config.num_attention_heads).to(device)
    if config.model_type == "bloom":
        return ScoreModifier(slopes=slopes)
    if not config.alibi:
        return ScoreModifier()

    def rounded(positions: torch.Tensor) -> torch.Tensor:
        """Falcon was trained with products in bfloat16, scaled as products of heads are."""
        return (slopes[:, None].bfloat16() * positions).float() * config.head_dim**-0.5

    return ScoreModifier(key_bias=rounded)


def _slopes(heads: int) -> torch.Tensor:
    """``[heads]``: a geometric series if heads are a power of two; else the series of the power
    below, and then every other slope of the power above."""
    below = 2 ** (heads.bit_length() - 1)
    exponents = [8 * step / below for step in range(1, below + 1)]
    exponents += [4 * step / below for step in range(1, 2 * (heads - below), 2)]
    return 2 ** -torch.tensor(exponents)
