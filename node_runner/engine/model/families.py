"""How families of models differ from Llama's, as far as a span has to know.

Layers come from transformers, so a family is mostly names: where its layers and norms are, and what
happens to hidden states before the first layer and after the last one. Which models are served at
all: :mod:`mesh.model.served_models`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Config = Any
"""A configuration of transformers, whose attributes differ by family."""

PER_LAYER_SETTINGS = ("layer_types", "no_rope_layers")
"""Settings with one value a layer, of which a span has those of its layers."""


def _grouped(config: Config) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width, width


def _one_each(config: Config) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    return heads, config.hidden_size // heads, config.hidden_size // heads


def _latent(config: Config) -> tuple[int, int, int]:
    """Attention sees the latents of MLA expanded to all heads."""
    return (
        config.num_attention_heads,
        config.qk_nope_head_dim + config.qk_rope_head_dim,
        config.v_head_dim,
    )


def _falcon(config: Config) -> tuple[int, int, int]:
    if config.new_decoder_architecture:
        heads = config.num_kv_heads
    else:
        heads = 1 if config.multi_query else config.num_attention_heads
    return heads, config.head_dim, config.head_dim


def _nothing(_config: Config, _start: int, _end: int) -> dict[str, object]:
    return {}


def _sparse_by_step(config: Config, start: int, end: int) -> dict[str, object]:
    """Experts are in every n-th layer of the model: a span lists the layers without."""
    dense = [
        index - start
        for index in range(start, end)
        if index in config.mlp_only_layers or (index + 1) % config.decoder_sparse_step
    ]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def _dense_first(config: Config, start: int, _end: int) -> dict[str, object]:
    return {"first_k_dense_replace": max(0, config.first_k_dense_replace - start)}


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's decoder differs from Llama's.

    Args:
        layers: Name of the decoder's attribute with its layers.
        norm: Name of its attribute with the norm after the last layer.
        positions: Name of its attribute with the embedding of positions, if it has one.
        embedding_factor: Name of its attribute by which embedded tokens are multiplied, if the
            embedding itself does not.
        embedding_norm: Name of its attribute with the norm before the first layer, if it has one.
        logit_factor: By what logits are multiplied, given the configuration.
        logit_cap: Name of the setting with the number within ± of which tanh keeps logits.
        kv: The number of KV heads, their keys' width and their values' width, given the
            configuration.
        renumbered: Settings that name layers by index, as they are for a span, given the
            configuration and the span's start and end.
        interface: Whether it calls attention through transformers' `AttentionInterface`.
        passes_kwargs: Whether its layers pass keyword arguments that they do not know on to
            attention.
    """

    layers: str = "layers"
    norm: str = "norm"
    positions: str | None = None
    embedding_factor: str | None = None
    embedding_norm: str | None = None
    logit_factor: Callable[[Config], float] | None = None
    logit_cap: str | None = None
    kv: Callable[[Config], tuple[int, int, int]] = _grouped
    renumbered: Callable[[Config, int, int], dict[str, object]] = _nothing
    interface: bool = True
    passes_kwargs: bool = True


FAMILIES = {
    "bloom": Family(
        layers="h",
        norm="ln_f",
        embedding_norm="word_embeddings_layernorm",
        kv=_one_each,
        interface=False,
    ),
    "cohere": Family(logit_factor=lambda config: config.logit_scale),
    "deepseek_v3": Family(kv=_latent, renumbered=_dense_first),
    "ernie4_5": Family(),
    "exaone4": Family(),
    "falcon": Family(layers="h", norm="ln_f", kv=_falcon, interface=False),
    "gemma": Family(),
    "gemma2": Family(logit_cap="final_logit_softcapping"),
    "gemma3_text": Family(logit_cap="final_logit_softcapping"),
    "glm4": Family(),
    "gpt2": Family(layers="h", norm="ln_f", positions="wpe", kv=_one_each),
    "gpt_neox": Family(norm="final_layer_norm", kv=_one_each),
    "gpt_oss": Family(),
    "granite": Family(
        embedding_factor="embedding_multiplier",
        logit_factor=lambda config: 1 / config.logits_scaling,
    ),
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "olmo2": Family(),
    "olmoe": Family(),
    "phi": Family(norm="final_layernorm"),
    "phi3": Family(),
    "qwen2": Family(),
    "qwen2_moe": Family(renumbered=_sparse_by_step),
    "qwen3": Family(),
    "qwen3_moe": Family(renumbered=_sparse_by_step),
    "smollm3": Family(),
    "stablelm": Family(passes_kwargs=False),
    "starcoder2": Family(),
}
