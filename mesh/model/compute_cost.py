"""The edge's work for a token in thousandths of a layer's, by a model's configuration."""

from collections.abc import Mapping
from typing import Any

EDGE_UNITS_PER_LAYER = 1000
"""Work is counted in thousandths of a decoder layer, so that the edge's is an integer."""


def edge_units(config: Mapping[str, Any]) -> int:
    """The edge's work for a token, in thousandths of a layer's.

    Args:
        config: As :func:`mesh.model.config.normalize` gives it.
    """
    head: int = config["vocab_size"] * config["hidden_size"]
    return round(head * EDGE_UNITS_PER_LAYER / layer_parameters(config))


def layer_parameters(config: Mapping[str, Any]) -> int:
    """Weights that one token meets in one decoder layer with grouped-query attention and a
    gated MLP (Llama's shape)."""
    hidden: int = config["hidden_size"]
    heads: int = config["num_attention_heads"]
    head_dim: int = config.get("head_dim") or hidden // heads
    kv_heads: int = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    mlp: int = 3 * hidden * config["intermediate_size"]
    return attention + mlp
