"""Makes engines: a span's checkpoint, its layers in memory, and its KV budget."""

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from mesh import json_text, wire
from mesh.errors import MeshError
from mesh.model.memory_footprint import QUANTIZATIONS, footprint
from mesh.node_api import Span
from node_runner.engine.decoding.draft_model import load_draft_span
from node_runner.engine.engine import Engine
from node_runner.engine.model import float16
from node_runner.engine.model.acceleration import capture_decoding, enable_paged_attention
from node_runner.engine.model.batch_invariance_trial import holds_batch_invariance
from node_runner.engine.model.span_checkpoint import SpanSpec, prepare_span
from node_runner.engine.model.span_model import SpanModel
from node_runner.machine import devices
from node_runner.node.options import CannotServe, NodeOptions
from node_runner.platform_client.weight_listing import ListingRequest, WalletKey
from node_runner.weights.source import Source
from node_runner.weights.source_selection import select_source

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PreparedSpan:
    """A span's checkpoint on disk, and the bytes that serving it takes."""

    folder: Path
    spec: SpanSpec
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class SpanInfo:
    """What is known of a span that was loaded, and may be kept when the span is gone from memory.

    ``folder``: the checkpoint, which stays in the cache until it is released. ``memory_bytes``:
    weights and KV while it is served. ``weight_bytes``: weights alone. ``seconds``: of loading
    them.
    """

    folder: Path
    spec: SpanSpec
    memory_bytes: int
    weight_bytes: int
    seconds: float

    @property
    def span(self) -> Span:
        return self.spec.start, self.spec.end


@dataclass(frozen=True, slots=True)
class LoadedSpan:
    """A span in memory, and the draft model beside it, if there is one. Whoever keeps this keeps
    them in memory: once there is an engine, only ``info`` is of use."""

    info: SpanInfo
    model: SpanModel
    draft_span: SpanModel | None


class EngineLoader:
    """Loads spans of the model that a node was started for.

    Args:
        options: Model, quantization, KV budget, and where the weights are, if not the platform is
            to say.
        device: Where layers are loaded to.
        platform: The platform's URL.

    Raises:
        CannotServe: an option is wrong.
    """

    def __init__(self, options: NodeOptions, device: torch.device, platform: str) -> None:
        if options.quantization not in QUANTIZATIONS:
            raise CannotServe(
                f"--quantization is one of {', '.join(QUANTIZATIONS)}; "
                f"got {options.quantization!r}."
            )
        self._options = options
        self._device = device
        try:
            self._dtype = devices.pick_dtype(options.dtype, device)
        except ValueError as error:
            raise CannotServe(str(error)) from None
        self._listing = _listing_request(options, platform)
        self._wire_dtype = _wire_dtype(options.wire)
        self._kv_bytes = round(options.kv_gb * 1e9)

    def check_config(self) -> None:
        """Read the model's configuration, where the options say where that is, before the node
        registers.

        Raises:
            CannotServe: it cannot be read.
        """
        if self._options.path is None:
            return
        try:
            with closing(self._open_source()) as files:
                files.read_small("config.json")
        except (MeshError, OSError) as error:
            raise CannotServe(str(error)) from None

    def prepare(self, span: Span | None, *, edge: bool) -> PreparedSpan:
        """Fetch a span's checkpoint; all layers, if no span is given.

        Raises:
            CannotServe: the model has no such span, or the engine does not know its family.
        """
        try:
            folder, spec = prepare_span(
                self._options.path or self._options.model,
                layers=span,
                edge=edge,
                cache=self._options.cache,
                cache_bytes=_bytes(self._options.cache_gb),
                verify=self._options.verify,
                opened=self._open_source,
            )
            sizes = footprint(
                _config(folder), self._options.quantization, dtype_bytes=self._dtype.itemsize
            )
        except MeshError as error:
            raise CannotServe(error.detail) from None
        except OSError as error:
            source = self._options.path or self._options.model
            raise CannotServe(f"Cannot read the model {source}: {error}") from None
        weights = (spec.end - spec.start) * sizes.layer + edge * sizes.edge
        return PreparedSpan(folder, spec, weights + self._kv_bytes)

    def load(self, prepared: PreparedSpan) -> LoadedSpan:
        """Load a span's layers, and the draft model beside its edge.

        Raises:
            CannotServe: it cannot be quantized like this, or the draft model does not fit.
        """
        torch.set_num_threads(self._options.threads)  # of this thread
        began = time.monotonic()
        try:
            model = SpanModel(
                prepared.folder,
                edge=prepared.spec.edge,
                device=self._device,
                dtype=self._dtype,
                quantization=self._options.quantization,
                batch_invariant=self._options.batch_invariant,
            )
            seconds = time.monotonic() - began
            model.warm_up()
            if self._dtype is torch.float16:
                float16.check_span(model)
            draft_span = self._load_draft_span(model)
            if self._options.paged and self._device.type == "cuda":
                enable_paged_attention(model)
                if draft_span is not None:
                    enable_paged_attention(draft_span)
            if model.batch_invariant:
                model.batch_invariant = holds_batch_invariance(model)
            elif self._dtype.itemsize == 2:
                log.warning("batch_invariance_off")
        except MeshError as error:
            raise CannotServe(error.detail) from None
        info = SpanInfo(
            prepared.folder,
            prepared.spec,
            memory_bytes=prepared.memory_bytes,
            weight_bytes=sum(weight.nbytes for weight in model.weights),
            seconds=seconds,
        )
        return LoadedSpan(info, model, draft_span)

    def make_engine(self, loaded: LoadedSpan, node_id: str) -> Engine:
        """
        Raises:
            CannotServe: the KV budget holds not even one block.
        """
        engine = Engine(
            loaded.model,
            node_id=node_id,
            kv_budget_bytes=self._kv_budget(loaded.model),
            wire_dtype=self._wire_dtype,
            speculate=self._options.speculate,
            draft_span=loaded.draft_span,
            max_generations=self._options.max_sessions,
        )
        if loaded.model.kv_shape.paged:
            capture_decoding(loaded.model, engine.pool)
        return engine

    def _open_source(self) -> Source:
        """The model's files, after a look whether the model can be computed as the options say:
        before anything large is fetched."""
        files = select_source(self._options.path, self._options.model, self._listing.send)
        if self._dtype is torch.float16:
            try:
                float16.check_family(_model_type(files))
            except MeshError:
                files.close()
                raise
        return files

    def _load_draft_span(self, model: SpanModel) -> SpanModel | None:
        if self._options.draft is None or not self._options.speculate or not model.edge:
            return None
        return load_draft_span(self._options.draft, model, cache=self._options.cache)

    def _kv_budget(self, model: SpanModel) -> int:
        least = model.kv_shape.bytes_per_block
        if self._kv_bytes < least:
            raise CannotServe(
                f"--kv-gb {self._options.kv_gb:g} holds nothing: a block takes {least / 1e9:g} GB."
            )
        return self._kv_bytes


def _listing_request(options: NodeOptions, platform: str) -> ListingRequest:
    """Asks for weights with the credential that the node registers with."""
    secret = options.credential
    credential = secret if isinstance(secret, str) else WalletKey(options.wallet, secret)
    return ListingRequest(platform, options.model, credential)


def _model_type(files: Source) -> object:
    """None where the configuration is broken, which whoever reads all of it says."""
    try:
        return json_text.loads(files.read_small("config.json")).get("model_type")
    except (ValueError, AttributeError):
        return None


def _config(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError:
        raise CannotServe(
            f"The checkpoint in {folder} is damaged. Delete that folder: it will be made anew."
        ) from None
    return found


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


def _wire_dtype(name: str) -> str | None:
    if name == "auto":
        return None
    if name not in wire.DTYPES:
        raise CannotServe(f"--wire is one of auto, {', '.join(wire.DTYPES)}; got {name!r}.")
    return name
