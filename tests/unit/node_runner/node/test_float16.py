"""A model that float16 cannot hold is refused at start, with a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from node_runner.node.engine_loader import EngineLoader
from node_runner.node.options import CannotServe
from tests.conftest import DEMO_MODEL
from tests.support.node.options import node_options

CPU = torch.device("cpu")


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """The demo model, with weights whose names end so multiplied by a number."""

    def make(ending: str, factor: float) -> Path:
        made = tmp_path / "model"
        shutil.copytree(DEMO_MODEL, made)
        weights = load_file(made / "model.safetensors")
        changed = {
            name: tensor * factor if name.endswith(ending) else tensor
            for name, tensor in weights.items()
        }
        save_file(changed, made / "model.safetensors", metadata={"format": "pt"})
        return made

    return make


def load(path: Path, cache: Path, *, edge: bool = False, dtype: str = "float16") -> None:
    loader = EngineLoader(node_options(cache, path=str(path), dtype=dtype), CPU, "http://nowhere")
    loader.check_config()
    loader.load(loader.prepare((0, 2) if edge else (2, 4), edge=edge))


@pytest.mark.parametrize("edge", [False, True])
def test_a_model_that_fits_is_served(tmp_path: Path, edge: bool) -> None:
    load(DEMO_MODEL, tmp_path, edge=edge)


def test_weights_beyond_its_range(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    made = make_checkpoint("up_proj.weight", 1e6)
    with pytest.raises(CannotServe, match="has weights that float16 cannot hold"):
        load(made, tmp_path / "spans")
    load(made, tmp_path / "spans", dtype="bfloat16")


@pytest.mark.parametrize("edge", [False, True])
def test_numbers_on_the_way(
    make_checkpoint: Callable[..., Path], tmp_path: Path, edge: bool
) -> None:
    made = make_checkpoint("_proj.weight", 300.0)
    with pytest.raises(CannotServe, match="overflows when it is computed in float16"):
        load(made, tmp_path / "spans", edge=edge)
    load(made, tmp_path / "spans", edge=edge, dtype="bfloat16")


def test_a_family_that_is_known_for_it_is_not_fetched(tmp_path: Path) -> None:
    """Before anything but its configuration is read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    with pytest.raises(CannotServe, match=r"family gemma2 overflow in float16\. Use --dtype"):
        load(tmp_path, tmp_path / "spans")
