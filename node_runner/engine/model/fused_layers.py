"""The layers of the Llama families, fused: the same arithmetic in a third of the operations.

A short step is bound by the number of its operations, not by their work: transformers' layer has
fifty, and they take four times as long as reading its weights. Here are twenty: one product for
query, key and value, one for gate and up, one rotation for queries and keys, and norms and rotary
angles that are computed once. Tests compare the two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from mesh.model.served_models import STATIC_ROPE
from node_runner.engine.attention.interface import BatchLayout, ScoreModifier
from node_runner.engine.attention.ragged_batch import RaggedBatch, attend
from node_runner.engine.device.matmul import Linear

FUSABLE = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Layers of transformers that differ only in biases and in norms of queries and keys."""


def can_fuse(decoder: Any) -> bool:
    """Whether :class:`FusedLayers` computes what the decoder does. Quantized weights cannot be
    joined, so such layers stay as they are."""
    linears = [module for module in decoder.layers.modules() if hasattr(module, "in_features")]
    return (
        all(type(layer).__name__ in FUSABLE for layer in decoder.layers)
        and all(type(module) is nn.Linear for module in linears)
        and decoder.rotary_emb.rope_type in STATIC_ROPE
    )


class FusedLayers:
    """A :data:`LayerStack` that takes a decoder's layers over: their weights move here. ``linear``
    computes products with them."""

    def __init__(self, decoder: Any, linear: Linear) -> None:
        self._layers = []
        for index in range(len(decoder.layers)):
            self._layers.append(_FusedLayer(decoder.layers[index], linear))
            decoder.layers[index] = nn.Identity()  # at most one layer is in memory twice
        self._angles = _Angles(decoder.rotary_emb, self.weights[0])

    @property
    def weights(self) -> list[torch.Tensor]:
        """All weights of all layers."""
        return [weight for layer in self._layers for weight in layer.weights]

    @property
    def hidden_size(self) -> int:
        """Width of hidden states."""
        return self._layers[0].hidden_size

    @property
    def head_dim(self) -> int:
        """Width of a head's queries, keys and values."""
        return self._layers[0].head_dim

    def __call__(self, hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        return self.run(hidden, *self.angles(batch), batch)

    def angles(self, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of a batch's rows, each ``[rows, 1, head_dim]``: the rotary
        embedding (Su et al. 2021)."""
        return self._angles.of(batch)

    def run(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        """Rows ``[rows, hidden]`` through all layers.

        Args:
            hidden: The rows' hidden states.
            cos: The rows' cosines, as :meth:`angles` gives them.
            sin: The rows' signed sines, as :meth:`angles` gives them.
            layout: Where the rows go in the pool, and how they are grouped.
        """
        for layer in self._layers:
            hidden = layer(hidden, cos, sin, layout)
        return hidden


class _FusedLayer:
    """``[rows, hidden] → [rows, hidden]``."""

    def __init__(self, layer: Any, linear: Linear) -> None:
        self._linear = linear
        attention, mlp = layer.self_attn, layer.mlp
        self._index: int = attention.layer_idx
        self._score = ScoreModifier(scaling=attention.scaling, window=_window(attention))
        self.head_dim: int = attention.head_dim
        query_heads = attention.q_proj.out_features // self.head_dim
        kv_heads = attention.k_proj.out_features // self.head_dim
        self._rotated_and_values = (query_heads + kv_heads, kv_heads)
        self._queries_and_keys = (query_heads, kv_heads)
        self._norm, self._eps = _norm(layer.input_layernorm)
        self.hidden_size = len(self._norm)
        self._qkv = _concatenated(attention.q_proj, attention.k_proj, attention.v_proj)
        self._heads_norm, self._heads_eps = self._norm_of_heads(attention)
        self._output = _concatenated(attention.o_proj)
        self._mlp_norm, self._mlp_eps = _norm(layer.post_attention_layernorm)
        self._gate_up = _concatenated(mlp.gate_proj, mlp.up_proj)
        self._down = _concatenated(mlp.down_proj)
        self._activation: Callable[[torch.Tensor], torch.Tensor] = mlp.act_fn.forward

    @property
    def weights(self) -> list[torch.Tensor]:
        linears = [*self._qkv, *self._output, *self._gate_up, *self._down]
        norms = [self._norm, self._mlp_norm, self._heads_norm]
        return [weight for weight in (*linears, *norms) if weight is not None]

    def __call__(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        rows, width = hidden.shape
        mixed = self._linear(rms_norm(hidden, (width,), self._norm, self._eps), *self._qkv)
        heads = mixed.view(rows, -1, self.head_dim)
        queries_and_keys, values = heads.split_with_sizes(self._rotated_and_values, 1)
        if self._heads_norm is not None:
            normed = rms_norm(queries_and_keys, (self.head_dim,), None, self._heads_eps)
            queries_and_keys = self._heads_norm * normed
        swapped = queries_and_keys.roll(self.head_dim // 2, -1)
        rotated = queries_and_keys * cos + swapped * sin
        queries, keys = rotated.split_with_sizes(self._queries_and_keys, 1)
        attended = attend(layout, self._index, queries, keys, values, self._score)
        hidden = hidden + self._linear(attended.view(rows, -1), *self._output)
        normed = rms_norm(hidden, (width,), self._mlp_norm, self._mlp_eps)
        gate, up = self._linear(normed, *self._gate_up).chunk(2, -1)
        return hidden + self._linear(self._activation(gate) * up, *self._down)

    def _norm_of_heads(self, attention: Any) -> tuple[torch.Tensor | None, float]:
        """Weight ``[heads, head_dim]``, queries' heads first; none where heads have no norm."""
        if not hasattr(attention, "q_norm"):
            return None, 0.0
        norms, (eps, _) = zip(_norm(attention.q_norm), _norm(attention.k_norm), strict=True)
        heads = zip(norms, self._queries_and_keys, strict=True)
        return torch.cat([norm.expand(count, -1) for norm, count in heads]), eps


class _Angles:
    """Cosines and sines by position, made once, and again for twice the length when needed.

    The sines of the first half are negative: half-swapped heads times these are what transformers
    computes as `rotate_half(heads) * sin`.
    """

    def __init__(self, rotary: Any, like: torch.Tensor) -> None:
        self._rotary = rotary
        self._like = like
        self._table = self._make(1)

    def of(self, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of a batch's rows, each ``[rows, 1, head_dim]``."""
        end = max(segment.end for segment in batch.segments)
        if end > self._table.shape[1]:
            self._table = self._make(2 * end)
        if len(batch.segments) == 1:
            rows = self._table[:, batch.segments[0].position : end]
        else:
            rows = self._table.index_select(1, batch.positions)
        cos, sin = rows.unbind()
        return cos, sin

    def _make(self, length: int) -> torch.Tensor:
        positions = torch.arange(length, device=self._like.device)[None]
        cos, sin = self._rotary(self._like, position_ids=positions)
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return torch.cat([cos, signed])[:, :, None]


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    return module.weight.detach(), module.variance_epsilon


def _window(attention: Any) -> int | None:
    """The sliding window: Qwen has one for each layer, Mistral one for all; Llama has none."""
    if type(attention).__name__ == "MistralAttention":
        return attention.config.sliding_window
    return getattr(attention, "sliding_window", None)


def _concatenated(*linears: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of one linear layer that gives the outputs of several side by side."""
    weight = torch.cat([each.weight.detach() for each in linears])
    if linears[0].bias is None:
        return weight, None
    return weight, torch.cat([each.bias.detach() for each in linears])
