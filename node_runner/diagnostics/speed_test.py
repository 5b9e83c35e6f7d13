"""How fast this device is at a model's layers: with the model's weights, or random ones of its
shape."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from mesh.model.config import normalize
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel

BATCH = 8
"""Generations of the second decode measurement."""

CHUNK = 256
"""Positions of the prefill measurement: as the engine computes prompts."""

HISTORY = 128
"""Positions that a generation has behind it while decoding is measured."""

OnProgress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured speed in layers a second; ``batch`` and ``prefill`` count a layer once for each
    position."""

    layers: int
    """Layers that were loaded to measure."""
    decode: float
    batch: float
    prefill: float
    load_seconds: float
    weight_bytes: int

    def tokens(self, layers: int) -> tuple[float, float]:
        """Tokens a second through ``layers``: of one generation, and of several at once."""
        return self.decode / layers, self.batch / layers


@contextmanager
def random_checkpoint(config: Mapping[str, Any], layers: int) -> Iterator[Path]:
    """A checkpoint's folder with ``layers`` of random weights in a model's shape."""
    settings = normalize(config) | {"num_hidden_layers": layers, "vocab_size": 8}
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if isinstance(settings.get("layer_types"), list):
        settings["layer_types"] = settings["layer_types"][:layers]
    shape = AutoConfig.for_model(**settings)
    with tempfile.TemporaryDirectory(prefix="far-node-bench-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = AutoModel.from_config(shape, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        weights = model.state_dict()
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(shape.to_dict()))
        yield folder


def measure(
    source: str,
    *,
    layers: int,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str,
    seconds: float,
    on_progress: OnProgress = lambda share: None,
) -> Speed:
    """Load the first layers of a checkpoint and time them.

    Args:
        source: Folder or hub id.
        seconds: For all three measurements together, loading not included.

    Raises:
        UnsupportedModel: the engine does not serve it like this.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="far-node-bench-") as cache:
        folder, _ = prepare_span(source, layers=(0, layers), edge=False, cache=Path(cache))
        span = SpanModel(folder, edge=False, device=device, dtype=dtype, quantization=quantization)
        span.warm_up()
        load_seconds = time.perf_counter() - began
        timer = _Timer(span, seconds / 3, on_progress)
        return Speed(
            layers=layers,
            decode=timer.time([1], HISTORY, 0.0),
            batch=timer.time([1] * BATCH, HISTORY, 1 / 3),
            prefill=timer.time([CHUNK], 0, 2 / 3),
            load_seconds=load_seconds,
            weight_bytes=sum(weight.nbytes for weight in span.weights),
        )


class _Timer:
    def __init__(self, span: SpanModel, seconds: float, on_progress: OnProgress) -> None:
        self._span = span
        self._seconds = seconds
        self._on_progress = on_progress

    def time(self, rows: list[int], history: int, done: float) -> float:
        """Layers a second, each counted for each row, of forwards of these rows at this position.

        Every forward is at one position: it overwrites what the one before wrote.
        """
        span = self._span
        blocks = -(-(history + max(rows)) // span.kv_shape.block_size)
        pool = KVBlockPool(span.kv_shape, len(rows) * blocks * span.kv_shape.bytes_per_block)
        reserved = [pool.reserve(history + max(rows)) for _ in rows]
        caches = [cache for cache in reserved if cache is not None]  # the pool has just enough
        hidden = torch.zeros(sum(rows), span.hidden_size, dtype=span.dtype, device=span.device)
        if history:
            for cache in caches:
                fill = hidden.new_zeros(history, span.hidden_size)
                span.forward(fill, RaggedBatch([Segment(cache, rows=history, position=0)]))

        def forward() -> None:
            segments = [
                Segment(cache, rows=count, position=history)
                for cache, count in zip(caches, rows, strict=True)
            ]
            span.forward(hidden, RaggedBatch(segments))

        forward()
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < self._seconds or count < 2:
            forward()
            if span.device.type == "cuda":
                torch.cuda.synchronize(span.device)
            count += 1
            self._on_progress(min(1.0, done + min(1.0, passed / self._seconds) / 3))
        return count * sum(rows) * span.layers / (time.perf_counter() - began)
