"""A model's config.json, normalized to the names that most families use."""

from collections.abc import Mapping
from typing import Any

ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "num_kv_heads": "num_key_value_heads",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
}
"""What gpt2, bloom, falcon and others call their settings."""

DEFAULT_CONTEXT = 2048
"""Positions, where a configuration names no limit: as many as falcon and bloom were trained on."""


def normalize(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration under the names that most families use, with the defaults that older families
    leave out."""
    config = {ALIASES.get(name, name): value for name, value in config.items()}
    config.setdefault("max_position_embeddings", DEFAULT_CONTEXT)
    if config.get("intermediate_size") is None:
        config["intermediate_size"] = 4 * config["hidden_size"]
    return config
