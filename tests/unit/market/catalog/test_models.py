"""What the gateway reads of a model's configuration, under whatever names a family has for it."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from market.catalog.models import load_model
from market.settings.models import ModelSettings
from mesh.errors import UnsupportedModel
from tests.conftest import DEMO_MODEL

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "vocab_size": 100,
}

GPT2 = {
    "model_type": "gpt2",
    "n_layer": 3,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": None,
    "n_positions": 512,
    "vocab_size": 100,
}

BLOOM = {
    "model_type": "bloom",
    "n_layer": 3,
    "hidden_size": 64,
    "n_head": 4,
    "seq_length": 512,
    "vocab_size": 100,
}


@pytest.mark.parametrize("config", [LLAMA, GPT2, BLOOM], ids=lambda config: config["model_type"])
def test_layers_and_context_are_found(config: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    model = load_model(ModelSettings(id="m", path=str(tmp_path), payment_per_token="0.1"))
    assert (model.layers, model.width, model.context, model.vocab) == (3, 64, 512, 100)
    assert model.edge_units > 0


@pytest.mark.parametrize(
    ("config", "generation", "reason"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, None, "quantization_config: 'awq'"),
        ({"model_type": "opt"}, None, "family 'opt'"),
        ({"sliding_window": 16}, None, "sliding_window"),
        ({"num_beams": 4}, None, "num_beams = 4"),
        ({}, {"guidance_scale": 3.0}, "guidance_scale = 3.0"),
        ({}, {"bad_words_ids": [[100]]}, "bad_words_ids"),
    ],
)
def test_what_no_node_would_serve_is_not_offered(
    config: dict[str, object], generation: dict[str, object] | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        load_model(ModelSettings(id="m", path=str(tmp_path), payment_per_token="0.1"))


def test_prompts_are_neither_cut_nor_filled(tmp_path: Path) -> None:
    """Whatever a tokenizer.json says: transformers does so only where a call asks for it."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    prompt = "When an exception is raised"
    whole = tokenizer.encode(prompt).ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = load_model(ModelSettings(id="m", path=str(tmp_path), payment_per_token="0.1"))
    assert model.tokenizer.encode(prompt).ids == whole
