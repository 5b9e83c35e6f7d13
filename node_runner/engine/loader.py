"""A span is a small checkpoint: only its own layers' tensors, loadable by `from_pretrained`.

The span's folder holds a `config.json` of k layers and a `model.safetensors`. The edge's span also
holds the embedding, the final norm and the LM head; any other holds decoder layers alone.
"""

import contextlib
import copy
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from mesh.errors import UnsupportedModel
from node_runner.engine.families import PER_LAYER, Config, check_settings, family_of

CACHE = Path.home() / ".cache" / "far-mesh" / "spans"

_LAYER = re.compile(r"^(?P<before>(?:.*?\.)?(?:layers|h)\.)(?P<index>\d+)(?P<after>\..*)$")


@dataclass(frozen=True, slots=True)
class SpanSpec:
    """Layers ``[start, end)`` of a model; ``edge``: embedding, final norm and LM head too."""

    start: int
    end: int
    edge: bool


def prepare_span(
    source: str, *, layers: tuple[int, int] | None, edge: bool, cache: Path
) -> tuple[Path, SpanSpec]:
    """The folder of a span's checkpoint, made if it is not there yet, and what it holds.

    Args:
        source: Local folder of a checkpoint in safetensors, or a hub id.
        layers: Start and end (not included); all layers if not given.
        edge: Whether to hold embedding, final norm and LM head too.
        cache: Folder under which span checkpoints are kept.

    Raises:
        UnsupportedModel: a family or a setting that the engine is not tested for, or a span
            that the model does not have.
    """
    fetch = _fetcher(source)
    config = _config(fetch)
    spec = SpanSpec(*(layers or (0, config.num_hidden_layers)), edge)
    _check_span(spec, config.num_hidden_layers)
    settings = _cut(config, spec).to_json_string(use_diff=False)
    shards = _shards(fetch, spec)
    target = cache / _fingerprint(source, settings, spec, sorted(set(shards.values())))
    if not target.exists():
        _build(target, settings, spec, shards, fetch)
    return target, spec


def _fetcher(source: str) -> Callable[[str], Path]:
    folder = Path(source)
    if folder.is_dir():
        return lambda name: folder / name
    if folder.is_absolute() or source.startswith("."):
        raise UnsupportedModel(f"There is no model folder {source}.")
    return lambda name: Path(hf_hub_download(source, name))


def _config(fetch: Callable[[str], Path]) -> Config:
    """With what a family computes from layers' numbers written out, so that it can be cut."""
    settings = json.loads(fetch("config.json").read_text())
    family_of(settings.get("model_type"))
    config = AutoConfig.for_model(**settings)
    check_settings(config)
    return config


def _check_span(spec: SpanSpec, layers: int) -> None:
    if not 0 <= spec.start < spec.end <= layers:
        raise UnsupportedModel(
            f"Span {spec.start}:{spec.end} is not within the model's layers 0:{layers}."
        )
    if spec.edge and spec.start != 0:
        raise UnsupportedModel("The edge goes with the span that starts at layer 0.")


def _shards(fetch: Callable[[str], Path], spec: SpanSpec) -> dict[str, Path]:
    """Tensor name → file, for the span's tensors only, so that only their shards are fetched."""
    try:
        index = json.loads(fetch("model.safetensors.index.json").read_text())["weight_map"]
    except (FileNotFoundError, OSError):
        file = fetch("model.safetensors")
        with safe_open(file, framework="pt") as tensors:
            return {name: file for name in tensors.keys() if _renamed(name, spec)}  # noqa: SIM118
    names = {name: shard for name, shard in index.items() if _renamed(name, spec)}
    files = {shard: fetch(shard) for shard in sorted(set(names.values()))}
    return {name: files[shard] for name, shard in names.items()}


def _renamed(name: str, spec: SpanSpec) -> str | None:
    """The tensor's name in the span's checkpoint; none if it is not the span's."""
    match = _LAYER.match(name)
    if match is None:
        return name if spec.edge else None
    layer = int(match["index"])
    if not spec.start <= layer < spec.end:
        return None
    return f"{match['before']}{layer - spec.start}{match['after']}"


def _cut(config: Config, spec: SpanSpec) -> Config:
    """The configuration of the span alone."""
    span = copy.deepcopy(config)
    changed = family_of(config.model_type).renumbered(config, spec.start, spec.end)
    for name in PER_LAYER:
        if getattr(config, name, None):
            changed[name] = getattr(config, name)[spec.start : spec.end]
    if not spec.edge:
        # The model class always makes an embedding; a span without the edge drops it after
        # loading, and one row is all that it costs until then.
        changed |= {"vocab_size": 1, "tie_word_embeddings": False}
        changed |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    span.num_hidden_layers = spec.end - spec.start
    for name, value in changed.items():
        setattr(span, name, value)
    return span


def _fingerprint(source: str, settings: str, spec: SpanSpec, files: list[Path]) -> str:
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    content = json.dumps([source, settings, spec.start, spec.end, spec.edge, stats])
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    edge = "-edge" if spec.edge else ""
    return f"{Path(source).name}-{spec.start}-{spec.end}{edge}-{digest}"


def _build(
    target: Path,
    settings: str,
    spec: SpanSpec,
    shards: dict[str, Path],
    fetch: Callable[[str], Path],
) -> None:
    """Write the checkpoint beside its place and move it there whole, so that a killed node
    leaves no half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        _write(made, settings, spec, shards, fetch)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(
    folder: Path,
    settings: str,
    spec: SpanSpec,
    shards: dict[str, Path],
    fetch: Callable[[str], Path],
) -> None:
    tensors = {}
    for file in sorted(set(shards.values())):
        with safe_open(file, framework="pt") as opened:
            for name in (name for name, where in shards.items() if where == file):
                tensors[_renamed(name, spec)] = opened.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(settings)
    if spec.edge:
        for name in ("tokenizer.json", "generation_config.json"):
            try:
                shutil.copy(fetch(name), folder / name)
            except OSError:
                if name == "tokenizer.json":
                    raise
