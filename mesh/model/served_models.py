"""Which models are served, by their `config.json`: known before any weight is fetched."""

from collections.abc import Mapping
from typing import Any

from mesh.errors import UnsupportedModel

FAMILIES = (
    "bloom",
    "cohere",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Values of ``model_type``. Each is tested to give transformers' own logits
(tests/unit/node_runner/engine/model/test_families.py)."""

STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose angles depend on the position alone. Others depend on the length of the
text, and a batch has texts of many lengths."""

UNSUPPORTED_SETTINGS = (
    "use_bidirectional_attention",
    "add_cross_attention",
    "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx",
)
"""Settings that change attention in ways that a span does not follow, if they are on."""

WINDOWED_BY_LAYER = frozenset(
    {
        "exaone4",
        "gemma2",
        "gemma3_text",
        "gpt_oss",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "smollm3",
    }
)
"""Families with a sliding window in the layers that ``layer_types`` names."""

WINDOWED = frozenset({"mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"})
"""Families with a sliding window in all layers or none. In every other family transformers makes
masks without one, whatever the configuration says, while its attention or KV cache has one."""

SWITCHED = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"})
"""Families whose ``sliding_window`` counts only with ``use_sliding_window``."""

FULL, SLIDING = "full_attention", "sliding_attention"

QUANTIZED = ("quantization_config", "compression_config")
"""Settings of checkpoints whose weights were published in fewer bits."""

DEQUANTIZED = {("gpt_oss", "mxfp4")}
"""Families, and how they were published quantized, whose weights a node dequantizes as it loads
them."""


def check_model(config: Mapping[str, Any]) -> None:
    """Refuse models that no node would serve.

    Args:
        config: Its config.json, as it was published or with what transformers derives from it.

    Raises:
        UnsupportedModel: a family or a setting under which a span would not give the model's
            logits; the error names it.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"The engine does not serve models of family {family!r} yet; it serves "
            f"{', '.join(FAMILIES)}."
        )
    _check_weights(family, config)
    for name in UNSUPPORTED_SETTINGS:
        if config.get(name):
            raise UnsupportedModel(f"The engine does not serve {family} models with {name} yet.")
    _check_window(family, config)
    for kind in sorted(_rope_types(config) - STATIC_ROPE):
        raise UnsupportedModel(
            f"The engine does not serve {family} models with rotary embeddings of type "
            f"{kind!r} yet."
        )


def _check_weights(family: str, config: Mapping[str, Any]) -> None:
    for name in QUANTIZED:
        found = config.get(name)
        if found is None:
            continue
        method = str(found.get("quant_method") if isinstance(found, Mapping) else found)
        if (family, method) in DEQUANTIZED:
            continue
        raise UnsupportedModel(
            f"The weights of this {family} model are quantized ({name}: {method!r}), which the "
            "engine does not read. Offer the checkpoint from which they were quantized."
        )


def _check_window(family: str, config: Mapping[str, Any]) -> None:
    """Refuse windows on which transformers' masks and its attention, or its KV cache, disagree."""
    listed = config.get("layer_types") or []
    kinds = set(map(str, listed)) if isinstance(listed, list) else {str(listed)}
    window = config.get("sliding_window")
    if unknown := kinds - {FULL, SLIDING}:
        raise UnsupportedModel(
            f"The engine does not serve {family} models with layer_types of "
            f"{', '.join(sorted(map(repr, unknown)))} yet."
        )
    if family not in WINDOWED | WINDOWED_BY_LAYER:
        if window is not None:
            raise _contradiction(family, "sliding_window", f"{family} has no window")
        if SLIDING in kinds:
            raise _contradiction(family, "layer_types", f"{family} has no window")
        return
    if family in SWITCHED and not config.get("use_sliding_window"):
        window = None
    if SLIDING in kinds and window is None and "sliding_window" in config:
        raise _contradiction(family, "layer_types", f"{SLIDING} has no window")
    if FULL in kinds and window is not None and family in WINDOWED:
        raise _contradiction(family, "layer_types", f"{family} has its window in all layers")


def _contradiction(family: str, name: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The configuration of this {family} model contradicts itself: {name} is set, but {reason}."
    )


def _rope_types(config: Mapping[str, Any]) -> set[str]:
    """Types of the rotary embeddings, under any of the names that they were given."""
    types = set()
    for name in ("rope_parameters", "rope_scaling"):
        found = config.get(name)
        if not isinstance(found, Mapping):
            continue
        by_layer = [part for part in found.values() if isinstance(part, Mapping)]
        types |= {
            str(part.get("rope_type") or part.get("type") or "default")
            for part in by_layer or [found]
        }
    return types
