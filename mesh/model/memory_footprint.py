"""Bytes that a model's parts take on a device, by its configuration: what placement counts in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import UnsupportedModel
from mesh.model.config import normalize

QUANTIZATIONS = ("none", "int8", "nf4")
"""How a node may keep its layers' weights: as the model has them, in 8 or in 4 bits."""

NF4_BLOCK = 64
"""Weights that share a scale in nf4."""

FP32_BYTES = 4


NF4_LEVELS = 16


UNGATED = {"bloom", "falcon", "gpt2", "gpt_neox", "phi", "starcoder2"}
"""Families whose MLP has two linear layers; that of all others has three."""

TIED = {
    "bloom",
    "cohere",
    "ernie4_5",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "smollm3",
    "starcoder2",
}
"""Families whose head is the embedding unless their configuration says otherwise."""

WHOLE = {
    "deepseek_v3": "experts",
    "falcon": "products",
    "gpt_oss": "experts",
    "mixtral": "experts",
    "olmoe": "experts",
    "qwen2_moe": "experts",
    "qwen3_moe": "experts",
}
"""Families that cannot be quantized, and what of them transformers does not keep in the linear
layers that quantizers know."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model's parts.

    ``layer``: the weights of a decoder layer; of the largest, where they differ. ``edge``:
    embedding, final norm and LM head, which are never quantized. ``kv``: keys and values of one
    position in one layer.
    """

    layer: int
    edge: int
    kv: int

    def layers_within(self, memory_bytes: int, *, positions: int) -> int:
        """How many layers fit in ``memory_bytes``, each with KV for ``positions``."""
        return max(0, memory_bytes) // (self.layer + positions * self.kv)


def footprint(
    config: Mapping[str, Any], quantization: str = "none", *, dtype_bytes: int = 2
) -> Footprint:
    """What a model takes, from its `config.json`.

    Norms and biases, a thousandth of a layer, are counted as four vectors a layer and one a
    linear layer.

    Args:
        config: With any family's names for its settings.
        quantization: One of :data:`QUANTIZATIONS`, for the layers.
        dtype_bytes: Of the dtype that weights which are not quantized have, and the KV cache.

    Raises:
        UnsupportedModel: see :func:`check_quantization`.
    """
    config = normalize(config)
    check_quantization(config, quantization)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes = linear_shapes(config)
    vectors = 4 * hidden + sum(outputs for outputs, _ in shapes)
    layer = vectors + _expert_parameters(config)
    tied = config.get("tie_word_embeddings", config.get("model_type") in TIED)
    edge = (1 if tied else 2) * vocab * hidden + 2 * hidden
    if config.get("model_type") == "gpt2":
        edge += config["max_position_embeddings"] * hidden
    return Footprint(
        layer=layer * dtype_bytes
        + sum(linear_bytes(shape, quantization, dtype_bytes) for shape in shapes),
        edge=edge * dtype_bytes,
        kv=_kv_numbers(config) * dtype_bytes,
    )


def check_quantization(config: Mapping[str, Any], quantization: str) -> None:
    """
    Raises:
        UnsupportedModel: no such quantization; a family whose weights it would leave as they
            are; or linear layers that do not divide into its blocks.
    """
    if quantization not in QUANTIZATIONS:
        raise UnsupportedModel(
            f"A quantization is one of {', '.join(QUANTIZATIONS)}; got {quantization!r}."
        )
    if quantization == "none":
        return
    config = normalize(config)
    family = config.get("model_type", "")
    if family in WHOLE:
        raise UnsupportedModel(
            f"Models of family {family!r} cannot be quantized: their {WHOLE[family]} are in no "
            "linear layers that a quantizer knows, and would take as much memory as before."
        )
    widths = {inputs for _, inputs in linear_shapes(config) if inputs % NF4_BLOCK}
    if quantization == "nf4" and widths:
        raise UnsupportedModel(
            f"nf4 takes weights in blocks of {NF4_BLOCK}: a product of width "
            f"{', '.join(map(str, sorted(widths)))} does not divide into them."
        )


def linear_shapes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Outputs and inputs of each linear layer in a decoder layer, without those of experts that not
    every token meets.

    Args:
        config: As :func:`mesh.model.config.normalize` gives it.
    """
    hidden: int = config["hidden_size"]
    shapes = _attention(config)
    width = _mlp_width(config)
    inward = 1 if config.get("model_type") in UNGATED else 2
    if width:
        shapes += [(width, hidden)] * inward + [(hidden, width)]
    return shapes


def linear_bytes(shape: tuple[int, int], quantization: str, dtype_bytes: int) -> int:
    """Bytes of a linear layer's weights, with the scales that a quantized one has.

    Args:
        shape: Outputs and inputs.
    """
    outputs, inputs = shape
    numbers = outputs * inputs
    if quantization == "int8":
        return numbers + outputs * FP32_BYTES
    if quantization == "nf4":
        scales = -(-numbers // NF4_BLOCK) + NF4_LEVELS
        return numbers // 2 + scales * FP32_BYTES
    return numbers * dtype_bytes


def _attention(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    hidden: int = config["hidden_size"]
    heads: int = config["num_attention_heads"]
    if config.get("kv_lora_rank"):
        key, rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        latent, value, rank = config["kv_lora_rank"], config["v_head_dim"], config["q_lora_rank"]
        queries = heads * (key + rotary)
        return [
            *([(rank, hidden), (queries, rank)] if rank else [(queries, hidden)]),
            (latent + rotary, hidden),
            (heads * (key + value), latent),
            (hidden, heads * value),
        ]
    width, kv_heads = _head_dim(config), _kv_heads(config)
    return [
        (heads * width, hidden),
        (kv_heads * width, hidden),
        (kv_heads * width, hidden),
        (hidden, heads * width),
    ]


def _mlp_width(config: Mapping[str, Any]) -> int:
    """Width of the MLP that every token meets; where there are experts, of the shared ones."""
    if not config.get("num_experts"):
        width: int = config["intermediate_size"]
        return width
    shared: int = config.get("shared_expert_intermediate_size", 0)
    return shared or config.get("n_shared_experts", 0) * config.get("moe_intermediate_size", 0)


def _expert_parameters(config: Mapping[str, Any]) -> int:
    experts: int = config.get("num_experts") or 0
    width: int = config.get("moe_intermediate_size") or config["intermediate_size"]
    hidden: int = config["hidden_size"]
    return experts * (3 * hidden * width + hidden)  # each with its row of the router


def _kv_numbers(config: Mapping[str, Any]) -> int:
    if config.get("kv_lora_rank"):
        key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        numbers: int = config["num_attention_heads"] * (key + config["v_head_dim"])
        return numbers
    return 2 * _kv_heads(config) * _head_dim(config)


def _head_dim(config: Mapping[str, Any]) -> int:
    width: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return width


def _kv_heads(config: Mapping[str, Any]) -> int:
    heads: int = config["num_attention_heads"]
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    kv_heads: int = config.get("num_key_value_heads") or heads
    return kv_heads
