"""What the gateway reads of a model's configuration, under whatever names a family has for it."""

import json
import shutil
from pathlib import Path

import pytest

from market.catalog.models import load_model
from market.settings.models import ModelSettings
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
