"""The demo model as a checkpoint of several files."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import DEMO_MODEL


def copy_all_but_weights(folder: Path) -> dict[str, Tensor]:
    """Make the folder, with what a model has beside its weights; returns these."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_bytes((DEMO_MODEL / name).read_bytes())
    return load_file(DEMO_MODEL / "model.safetensors")


def save_shards(tensors: dict[str, Tensor], folder: Path, *, layers: int) -> None:
    """So many layers a file, one file for the rest, and their index."""
    weight_map = {
        name: f"layers-{int(name.split('.')[2]) // layers}.safetensors"
        if ".layers." in name
        else "rest.safetensors"
        for name in tensors
    }
    for shard in set(weight_map.values()):
        part = {name: tensors[name] for name, where in weight_map.items() if where == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
