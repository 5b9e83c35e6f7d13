"""Manifests: their hashes are the bytes', and one that does not agree with itself is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mesh.checkpoint.manifest import NAME, is_safe_name, make_manifest, read_manifest
from mesh.errors import WeightsRefused
from tests.conftest import DEMO_MODEL, MODEL_ID


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, made)
    return made


def test_it_has_the_hash_of_every_file_and_tensor(folder: Path) -> None:
    (folder / "notes.txt").write_text("not part of it")
    read: list[int] = []
    made = read_manifest(make_manifest(folder, MODEL_ID, read.append).to_bytes())
    assert made.model_id == MODEL_ID
    assert "notes.txt" not in made.files
    for name, file in made.files.items():
        assert file.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert sum(read) == sum(file.size for file in made.files.values())
    tensors = load_file(folder / "model.safetensors")
    assert made.tensors.keys() == tensors.keys()
    for name, tensor in made.tensors.items():
        content = tensors[name].numpy().tobytes()
        assert tensor.sha256 == hashlib.sha256(content).hexdigest()
        assert (folder / tensor.file).read_bytes()[tensor.start : tensor.end] == content


def test_its_own_file_is_not_in_it(folder: Path) -> None:
    before = make_manifest(folder, MODEL_ID)
    (folder / NAME).write_bytes(before.to_bytes())
    assert make_manifest(folder, MODEL_ID) == before


def test_what_is_no_checkpoint_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file(
        {"model.norm.weight": load_file(weights)["model.norm.weight"]}, folder / "x.safetensors"
    )
    with pytest.raises(WeightsRefused, match=r"model.norm.weight is in two files"):
        make_manifest(folder, MODEL_ID)
    (folder / "x.safetensors").unlink()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsRefused, match="header tells of"):
        make_manifest(folder, MODEL_ID)
    weights.unlink()
    with pytest.raises(WeightsRefused, match="no tensors"):
        make_manifest(folder, MODEL_ID)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsRefused, match=r"no config.json"):
        make_manifest(folder, MODEL_ID)


def manifest_json() -> dict[str, Any]:
    tensor = {"dtype": "F32", "shape": [2], "start": 16, "end": 24, "sha256": "0" * 64}
    return {
        "version": 1,
        "model_id": "far/small",
        "files": {"a.safetensors": {"size": 24, "sha256": "0" * 64}},
        "tensors": {"weight": {"file": "a.safetensors", **tensor}},
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("files", []),
        ("files", {"../secrets": {"size": 24, "sha256": "0" * 64}}),
        ("files a.safetensors size", -1),
        ("files a.safetensors size", 20),
        ("files a.safetensors sha256", "0" * 63),
        ("tensors weight sha256", "Z" * 64),
        ("tensors weight sha256", None),
        ("tensors weight file", "b.safetensors"),
        ("tensors weight dtype", "F31"),
        ("tensors weight shape", [3]),
        ("tensors weight shape", [2.0]),
        ("tensors weight start", True),
        ("tensors weight end", 16),
    ],
)
def test_a_manifest_that_lies_is_refused(path: str, value: object) -> None:
    assert read_manifest(json.dumps(manifest_json()).encode()).tensors["weight"].end == 24
    changed = manifest_json()
    *above, last = path.split()
    where = changed
    for name in above:
        where = where[name]
    where[last] = value
    with pytest.raises(WeightsRefused):
        read_manifest(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "/a", "a/../b", "a//b", "a\\b", ".a", "a\n", "%2e"]
)
def test_names_that_lead_elsewhere(name: str) -> None:
    assert not is_safe_name(name)
    assert is_safe_name("model-00001-of-00002.safetensors")
    assert is_safe_name("folder/model.safetensors")
