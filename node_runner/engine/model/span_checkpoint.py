"""A span is a small checkpoint: only its own layers' tensors, loadable by `from_pretrained`.

The span's folder holds a `config.json` of k layers and a `model.safetensors`. The edge's span also
holds the embedding, the final norm and the LM head; any other holds decoder layers alone. This
module says which tensors and settings of a model a span has; :mod:`node_runner.weights` fetches
them.
"""

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from transformers import AutoConfig

from mesh import json_text
from mesh.errors import UnsupportedModel, WeightsMissing, WeightsRefused, WeightsUnreachable
from mesh.model import generation_config, tokenizer
from mesh.model.generation_config import (
    FOLLOWED,
    effective_settings,
    read_generation_config,
)
from mesh.model.served_models import check_model
from node_runner.engine.model.families import FAMILIES, PER_LAYER_SETTINGS, Config
from node_runner.weights import span_download as weights
from node_runner.weights.checkpoint_cache import CheckpointCache
from node_runner.weights.source import Source

log = structlog.get_logger()

MAX_LAYER_DIGITS = 9

LAYERS = ("layers", "h")
"""What families call the list of their layers."""


@dataclass(frozen=True, slots=True)
class SpanSpec:
    """Layers ``[start, end)`` of a model; ``edge``: embedding, final norm and LM head too."""

    start: int
    end: int
    edge: bool


def prepare_span(
    source: str,
    *,
    layers: tuple[int, int] | None,
    edge: bool,
    cache: Path,
    cache_bytes: int | None = None,
    verify: bool = False,
    opened: Callable[[], Source] | None = None,
) -> tuple[Path, SpanSpec]:
    """The folder of a span's checkpoint, made if it is not there yet, and what it holds.

    The folder stays in the cache until this process ends, or calls
    :func:`node_runner.weights.checkpoint_cache.release`.

    Args:
        source: Local folder of a checkpoint in safetensors, a URL of one, or a hub id.
        layers: Start and end (not included); all layers if not given.
        edge: Whether the span has embedding, final norm and LM head too.
        cache: Folder under which span checkpoints are kept.
        cache_bytes: What they may take together; half of the disk if not given.
        verify: Whether to compare the hash of a checkpoint that is there, instead of its size and
            time.
        opened: Opens the files, if ``source`` alone does not tell where they are.

    Raises:
        UnsupportedModel: a family or a setting that the engine is not tested for, or a span
            that the model does not have.
        WeightsError: the weights cannot be had.
    """
    kept = CheckpointCache(cache, limit=cache_bytes, verify=verify)
    asked = json.dumps([source, layers, edge])
    try:
        files = opened() if opened is not None else weights.open_source(source)
        with closing(files):
            written = _read_settings(files, "config.json")
            config = _config(files, written)
            spec = SpanSpec(*(layers or (0, config.num_hidden_layers)), edge)
            _check_span(spec, config.num_hidden_layers)
            made = {"config.json": _cut(config, spec).to_json_string(use_diff=False)}
            if edge:
                made[generation_config.NAME] = _generation_settings(files, written, config)
            folder = weights.obtain(files, _request(source, asked, spec, made), kept)
    except WeightsUnreachable as error:
        latest = kept.latest(asked)
        if latest is None:
            raise
        log.warning("weights_source_unreachable", reason=error.detail, used=latest.name)
        count = json.loads((latest / "config.json").read_text())["num_hidden_layers"]
        return latest, SpanSpec(*(layers or (0, count)), edge)
    return folder, spec


def _request(
    source: str, asked: str, spec: SpanSpec, made: dict[str, str]
) -> weights.CheckpointRequest:
    edge = "-edge" if spec.edge else ""
    return weights.CheckpointRequest(
        label=f"{Path(source).name}-{spec.start}-{spec.end}{edge}",
        asked=asked,
        made=made,
        renamed=partial(_renamed, spec=spec),
        copied=(tokenizer.NAME,) if spec.edge else (),
    )


def _read_settings(files: Source, name: str) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        WeightsMissing: there is no such file.
        WeightsRefused: what the source gives is no JSON object.
    """
    try:
        settings = json_text.loads(files.read_small(name))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise WeightsRefused(
            f"What {files.name} gives for {name} is no model's configuration. Is that where the "
            "checkpoint lies?"
        )
    return settings


def _config(files: Source, written: dict[str, Any]) -> Config:
    """The model's configuration, with what transformers derives from a config.json written out, so
    that it can be cut to a span.

    Raises:
        UnsupportedModel: a family or a setting that the engine is not tested for.
    """
    check_model(written)
    try:
        config = AutoConfig.for_model(**written)
    except Exception as error:  # it checks fields in many ways
        reason = " ".join(str(error).split())
        raise UnsupportedModel(f"The config.json of {files.name} is wrong: {reason}") from None
    check_model(config.to_dict())
    return config


def _generation_settings(files: Source, written: dict[str, Any], config: Config) -> str:
    """The settings of generation that the edge follows, as a file of its span.

    Raises:
        UnsupportedModel: a setting that the edge does not follow.
    """
    try:
        published = _read_settings(files, generation_config.NAME)
    except WeightsMissing:
        published = None
    settings = effective_settings(written, published)
    read_generation_config(settings, vocab_size=config.vocab_size)
    return json.dumps({name: settings[name] for name in sorted(FOLLOWED & settings.keys())})


def _check_span(spec: SpanSpec, layers: int) -> None:
    if not 0 <= spec.start < spec.end <= layers:
        raise UnsupportedModel(
            f"Span {spec.start}:{spec.end} is not within the model's layers 0:{layers}."
        )
    if spec.edge and spec.start != 0:
        raise UnsupportedModel("The edge goes with the span that starts at layer 0.")


def _renamed(name: str, spec: SpanSpec) -> str | None:
    """The tensor's name in the span's checkpoint; none if it is not the span's."""
    parts = name.split(".")
    place = _place_of_layer(parts)
    if place is None:
        return name if spec.edge else None
    layer = int(parts[place])
    if not spec.start <= layer < spec.end:
        return None
    return ".".join([*parts[:place], str(layer - spec.start), *parts[place + 1 :]])


def _place_of_layer(parts: Sequence[str]) -> int | None:
    """Which part of a tensor's name is its layer's number; none if it is of no layer."""
    for place in range(1, len(parts) - 1):
        number = parts[place]
        if parts[place - 1] in LAYERS and number.isascii() and number.isdigit():
            return place if len(number) <= MAX_LAYER_DIGITS else None
    return None


def _cut(config: Config, spec: SpanSpec) -> Config:
    """The configuration of the span alone."""
    span = copy.deepcopy(config)
    changed = FAMILIES[config.model_type].renumbered(config, spec.start, spec.end)
    for name in PER_LAYER_SETTINGS:
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
