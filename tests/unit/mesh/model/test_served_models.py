"""What cannot be served is known by a model's config.json, and refused by name."""

from typing import Any

import pytest

from mesh.errors import UnsupportedModel
from mesh.model import served_models
from mesh.model.served_models import check_model
from node_runner.engine.model.families import FAMILIES

SLIDING, FULL = ["sliding_attention"] * 4, ["full_attention"] * 4
MIXED = SLIDING[:2] + FULL[:2]
USED = {"use_sliding_window": True}


def test_families_are_those_of_the_engine() -> None:
    assert list(served_models.FAMILIES) == list(FAMILIES)
    assert set(FAMILIES) >= served_models.WINDOWED | served_models.WINDOWED_BY_LAYER


@pytest.mark.parametrize(
    "method",
    ["awq", "bitsandbytes", "compressed-tensors", "eetq", "fp8", "gptq", "hqq", "mxfp4", "torchao"],
)
@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_quantized_weights_are_refused_by_name(name: str, method: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{name}: '{method}'"):
        check_model({"model_type": "llama", name: {"quant_method": method, "bits": 4}})


def test_gpt_oss_is_served_as_it_is_published() -> None:
    check_model({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}})
    with pytest.raises(UnsupportedModel, match="'gptq'"):
        check_model({"model_type": "gpt_oss", "quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize(
    ("family", "settings", "name"),
    [
        ("olmoe", {"sliding_window": 9}, "sliding_window"),
        ("llama", {"sliding_window": 4096}, "sliding_window"),
        ("llama", {"layer_types": MIXED}, "layer_types"),
        ("mistral", {"sliding_window": 9, "layer_types": MIXED}, "layer_types"),
        ("mistral", {"sliding_window": None, "layer_types": SLIDING}, "layer_types"),
        ("mistral", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("mistral", {"layer_types": [["x"]]}, "layer_types"),
        ("smollm3", {"sliding_window": 9, "layer_types": MIXED}, "layer_types"),
        ("qwen2", {"sliding_window": 9, "layer_types": MIXED}, "layer_types"),
        ("qwen3_moe", USED | {"sliding_window": 9, "layer_types": MIXED}, "layer_types"),
    ],
)
def test_windows_that_masks_and_attention_disagree_on_are_refused(
    family: str, settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        check_model({"model_type": family} | settings)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("olmoe", {"sliding_window": None}),
        ("llama", {"layer_types": FULL}),
        ("mistral", {"sliding_window": 9}),
        ("mistral", {"sliding_window": 9, "layer_types": SLIDING}),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": False}),
        ("qwen2", USED | {"sliding_window": 9, "layer_types": MIXED}),
        ("gemma3_text", {"layer_types": MIXED}),
    ],
)
def test_windows_that_count_are_served(family: str, settings: dict[str, Any]) -> None:
    check_model({"model_type": family} | settings)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope"}},
        {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
    ],
)
def test_angles_that_depend_on_the_length_are_refused(rope: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="rotary"):
        check_model({"model_type": "llama"} | rope)
