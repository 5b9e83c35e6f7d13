"""A span's checkpoint and memory hold its own layers and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mesh.errors import MeshError, UnsupportedModel, WeightsMissing, WeightsRefused
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import load_span

LAYERS = 6


def tensors_of(folder: Path) -> dict[str, int]:
    """Size of each tensor in a checkpoint, in elements."""
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name).numel() for name in opened.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def whole() -> dict[str, int]:
    return tensors_of(DEMO_MODEL)


def of_layers(whole: dict[str, int], start: int, end: int) -> list[int]:
    names = [f".layers.{layer}." for layer in range(start, end)]
    return sorted(size for tensor, size in whole.items() if any(name in tensor for name in names))


@pytest.mark.parametrize("layers", [(1, 3), (2, 6), (5, 6)])
def test_a_middle_span_holds_its_layers_and_nothing_else(
    layers: tuple[int, int], whole: dict[str, int], tmp_path: Path
) -> None:
    folder, spec = prepare_span(str(DEMO_MODEL), layers=layers, edge=False, cache=tmp_path)
    expected = of_layers(whole, *layers)
    assert sorted(tensors_of(folder).values()) == expected
    assert (spec.start, spec.end) == layers
    assert not (folder / "tokenizer.json").exists()
    span = load_span(DEMO_MODEL, layers, tmp_path)
    assert sum(weight.numel() for weight in span.weights) == sum(expected)


def test_the_edge_holds_embedding_norm_and_head_too(whole: dict[str, int], tmp_path: Path) -> None:
    folder, _ = prepare_span(str(DEMO_MODEL), layers=(0, 2), edge=True, cache=tmp_path)
    outside = [size for name, size in whole.items() if ".layers." not in name]
    assert sorted(tensors_of(folder).values()) == sorted(of_layers(whole, 0, 2) + outside)
    span = load_span(DEMO_MODEL, (0, 2), tmp_path)
    tied = json.loads((DEMO_MODEL / "config.json").read_text())["tie_word_embeddings"]
    in_memory = sum(weight.numel() for weight in span.weights)
    assert in_memory == sum(of_layers(whole, 0, 2)) + sum(outside)
    assert tied in (True, False)


def test_an_edge_that_does_not_say_how_to_generate_is_refused(tmp_path: Path) -> None:
    """An older far-node wrote none."""
    folder, _ = prepare_span(str(DEMO_MODEL), layers=(0, 2), edge=True, cache=tmp_path)
    (folder / "generation_config.json").unlink()
    with pytest.raises(WeightsMissing, match=r"no generation_config\.json: an older far-node"):
        SpanModel(folder, edge=True, device=torch.device("cpu"), dtype=torch.float32)


def test_all_spans_together_hold_every_tensor_once(whole: dict[str, int], tmp_path: Path) -> None:
    sizes: list[int] = []
    for start in range(LAYERS):
        folder, _ = prepare_span(
            str(DEMO_MODEL), layers=(start, start + 1), edge=start == 0, cache=tmp_path
        )
        sizes += tensors_of(folder).values()
    assert sorted(sizes) == sorted(whole.values())


def test_without_layers_the_span_is_the_whole_model(whole: dict[str, int], tmp_path: Path) -> None:
    folder, spec = prepare_span(str(DEMO_MODEL), layers=None, edge=True, cache=tmp_path)
    assert tensors_of(folder) == whole
    assert (spec.start, spec.end) == (0, LAYERS)


def test_a_span_is_made_once(tmp_path: Path) -> None:
    first, _ = prepare_span(str(DEMO_MODEL), layers=(0, 2), edge=True, cache=tmp_path)
    made_at = (first / "model.safetensors").stat().st_mtime_ns
    again, _ = prepare_span(str(DEMO_MODEL), layers=(0, 2), edge=True, cache=tmp_path)
    assert again == first
    assert (again / "model.safetensors").stat().st_mtime_ns == made_at


def test_a_changed_checkpoint_is_another_span(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, source)
    first, _ = prepare_span(str(source), layers=(0, 2), edge=True, cache=tmp_path / "cache")
    (source / "model.safetensors").touch()
    second, _ = prepare_span(str(source), layers=(0, 2), edge=True, cache=tmp_path / "cache")
    assert first != second


def test_only_the_shards_of_the_span_are_opened(tmp_path: Path) -> None:
    """A sharded checkpoint from which every other shard is missing."""
    source = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for name in tensors:
        layer = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "outside"
        weight_map[name] = f"model-{layer}.safetensors"
    for shard in ("model-2.safetensors", "model-3.safetensors"):
        names = [name for name, where in weight_map.items() if where == shard]
        save_file({name: tensors[name] for name in names}, source / shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    folder, _ = prepare_span(str(source), layers=(2, 4), edge=False, cache=tmp_path / "cache")
    assert len(tensors_of(folder)) == len([n for n in tensors if ".layers.2." in n]) * 2


@pytest.mark.parametrize(
    ("layers", "edge", "reason"),
    [
        ((4, 7), False, "not within"),
        ((3, 3), False, "not within"),
        ((2, 4), True, "starts at layer 0"),
    ],
)
def test_a_span_that_cannot_be_is_refused(
    layers: tuple[int, int], edge: bool, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        prepare_span(str(DEMO_MODEL), layers=layers, edge=edge, cache=tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no model folder"):
        prepare_span(str(tmp_path / "nowhere"), layers=None, edge=True, cache=tmp_path)


def test_a_path_from_home_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a settings' file no shell makes it one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(DEMO_MODEL, tmp_path / "models" / "demo")
    folder, _ = prepare_span("~/models/demo", layers=(2, 3), edge=False, cache=Path("~/spans"))
    assert folder.parent == tmp_path / "spans"
    with pytest.raises(UnsupportedModel, match="no model folder ~/models/dmeo"):
        prepare_span("~/models/dmeo", layers=None, edge=True, cache=tmp_path)


@pytest.mark.parametrize("place", ["models/of mine", "models/llama/8b", "--path"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"no model folder {place}.*--path is"):
        prepare_span(place, layers=None, edge=True, cache=tmp_path)


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ("<!doctype html><title>Not found</title>", WeightsRefused, "no model's configuration"),
        ("[]", WeightsRefused, "no model's configuration"),
        ('{"model_type": "llama", "hidden_size": "wide"}', UnsupportedModel, "hidden_size"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    config: str, error: type[MeshError], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=reason):
        prepare_span(str(tmp_path), layers=None, edge=True, cache=tmp_path / "cache")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, source)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"up_proj"):
        load_span(source, (2, 4), tmp_path / "cache")
