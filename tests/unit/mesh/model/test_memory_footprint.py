"""What a configuration tells of bytes is what the tensors take."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.footprint import MODELS, fits
from mesh.errors import UnsupportedModel
from mesh.model.memory_footprint import QUANTIZATIONS, Footprint, footprint
from node_runner.engine.model.families import FAMILIES
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL

LARGE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "pad_token_id": 0,
}
ALL_HEADS = {"num_key_value_heads": None, "head_dim": None}
FOURFOLD = ALL_HEADS | {"intermediate_size": 4 * 2048}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1408}
LATENT = {
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "head_dim": 64,
    "num_key_value_heads": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1408,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
}

VARIANTS: dict[str, dict[str, object]] = {name: {} for name in FAMILIES} | {
    "bloom": FOURFOLD,
    "deepseek_v3": LATENT,
    "deepseek_v3 whole queries": LATENT | {"q_lora_rank": None},
    "falcon": FOURFOLD | {"alibi": False},
    "falcon of many kv heads": FOURFOLD | {"multi_query": False, "alibi": False},
    "falcon new": FOURFOLD | {"new_decoder_architecture": True, "num_kv_heads": 4},
    "gpt2": FOURFOLD | {"n_positions": 1024},
    "gpt_neox": ALL_HEADS,
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "llama tied": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 8},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "phi": {"tie_word_embeddings": False},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 5632},
    "qwen3_moe": EXPERTS,
}

MARGIN = 0.002
"""What norms and biases may be mistaken by, as a part of the whole."""


def settings_of(variant: str) -> dict[str, Any]:
    settings = LARGE | VARIANTS[variant] | {"model_type": variant.split(maxsplit=1)[0]}
    return {name: value for name, value in settings.items() if value is not None or "rank" in name}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_takes_what_its_configuration_tells(variant: str) -> None:
    """Layers, edge and KV of a large model, whose tensors are never filled."""
    settings = settings_of(variant)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    family = FAMILIES[settings["model_type"]]
    layers = getattr(model.base_model, family.layers)
    heads, key_dim, value_dim = family.kv(config)
    computed = footprint(settings)
    in_layers = bytes_of(layers.parameters())
    assert computed.layer == pytest.approx(in_layers / len(layers), rel=MARGIN)
    assert computed.edge == pytest.approx(bytes_of(model.parameters()) - in_layers, rel=MARGIN)
    assert computed.kv == heads * (key_dim + value_dim) * 2


def bytes_of(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("layers", [(0, 2), (2, 5)], ids=["edge", "middle"])
def test_a_loaded_span_takes_what_its_configuration_tells(
    quantization: str, layers: tuple[int, int], tmp_path: Path
) -> None:
    """To the byte, but for norms and biases: of these Llama has two vectors a layer, and one."""
    edge = layers[0] == 0
    folder, _ = prepare_span(str(DEMO_MODEL), layers=layers, edge=edge, cache=tmp_path)
    span = SpanModel(
        folder,
        edge=edge,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        quantization=quantization,
    )
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    computed = footprint(config, quantization)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    not_there = 2 * (2 * hidden + (2 * hidden + 2 * keys) + (2 * wide + hidden))
    expected = (layers[1] - layers[0]) * (computed.layer - not_there)
    if edge:
        expected += computed.edge - 2 * hidden
    assert bytes_of(span.weights) == expected
    assert computed.kv * span.layers == span.kv_shape.bytes_per_position


def test_fewer_bits_leave_room_for_more_layers() -> None:
    config = settings_of("llama")
    room, positions = 8 * 10**9, 10_000
    layers = [
        footprint(config, how).layers_within(room, positions=positions) for how in QUANTIZATIONS
    ]
    whole, eight, four = layers
    assert whole < eight < four < 4 * whole
    kept = footprint(config)
    assert whole * (kept.layer + positions * kept.kv) <= room
    assert (whole + 1) * (kept.layer + positions * kept.kv) > room
    assert kept.layers_within(-1, positions=0) == 0


@pytest.mark.parametrize(
    ("changes", "quantization", "reason"),
    [
        ({}, "int3", "none, int8, nf4"),
        ({"intermediate_size": 5600}, "nf4", "blocks of 64: a product of width 5600"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "int8", "experts"),
        ({"model_type": "falcon"}, "nf4", "'falcon' cannot be quantized"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    changes: Mapping[str, object], quantization: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        footprint(settings_of("llama") | changes, quantization)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-2-7B", 6_738_415_616),
        ("Llama-2-13B", 13_015_864_320),
        ("Llama-2-70B", 68_976_648_192),
        ("BLOOM-176B", 176_247_271_424),
    ],
)
def test_large_models_have_as_many_parameters_as_is_known(name: str, parameters: int) -> None:
    config = MODELS[name]
    computed = footprint(config)
    total = config["num_hidden_layers"] * computed.layer + computed.edge
    assert total == pytest.approx(2 * parameters, rel=MARGIN)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (99, "-"),  # no layer
        (120, "1 / -"),  # no layer beside the edge
        (250, "2 / 5"),  # 2 each, but 1 beside the edge: 1 + 2 + 2 + 2 + 1
        (350, "3 / 3"),  # 3 each, 2 beside the edge: 2 + 3 + 3
        (2000, "8 / 1"),
    ],
)
def test_nodes_that_cover_a_model(room: int, expected: str) -> None:
    assert fits(Footprint(layer=90, edge=100, kv=1), 8, room, positions=10) == expected
