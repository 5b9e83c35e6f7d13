"""A small model on the edge, which runs ahead of the pipeline and guesses what it will choose.

Its guesses are drawn with the same numbers (seed and position) as the tokens themselves: where both
models think alike, they choose alike, at any temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import UnsupportedModel
from mesh.wire import SamplingParams
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.decoding.sampler import sample
from node_runner.engine.device.tensors import on_device
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel

PREFILL_CHUNK = 512
"""Positions of prompts that it reads before the edge goes on with other work."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Guess ``count`` tokens that follow ``tokens``, in a text of at most ``capacity``."""

    request_id: str
    tokens: Sequence[int]
    count: int
    capacity: int
    sampling: SamplingParams


def load_draft(
    source: str, target: SpanModel, *, cache: Path, cache_bytes: int | None = None
) -> SpanModel:
    """All layers of a small model that is to guess the target's tokens.

    Args:
        source: Local folder of a checkpoint in safetensors, or a hub id.
        target: The edge's span.
        cache: Folder under which span checkpoints are kept.
        cache_bytes: What they may take together; half of the disk if not given.

    Raises:
        UnsupportedModel: no such model, none that the engine serves, or another vocabulary.
    """
    folder, _ = prepare_span(source, layers=None, edge=True, cache=cache, cache_bytes=cache_bytes)
    span = SpanModel(folder, edge=True, device=target.device, dtype=target.dtype)
    same_rows = span.vocab_size == target.vocab_size
    if not same_rows or span.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise UnsupportedModel(f"The draft model {source} has another vocabulary than the model.")
    span.warm_up()
    return span


class DraftModel:
    """Guesses for many generations in the same forwards.

    Args:
        span: What :func:`load_draft` gave.
        positions: Room for its caches.
    """

    def __init__(self, span: SpanModel, *, positions: int) -> None:
        self._span = span
        self._pool = KVBlockPool(span.kv_shape, positions * span.kv_shape.bytes_per_position)
        self._caches: dict[str, KVCache] = {}

    def guess(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Up to as many tokens as asked for; none where there is no room, or where a prompt has
        not been read to its end yet."""
        guesses: list[list[int]] = [[] for _ in asks]
        behind = [(ask, own) for ask, own in zip(asks, guesses, strict=True) if self._admit(ask)]
        while behind:
            self._extend(behind)
            behind = [(ask, own) for ask, own in behind if own and len(own) < ask.count]
        return guesses

    def forget_after(self, request_id: str, length: int) -> None:
        """Only so many tokens were chosen; guesses behind them were wrong."""
        cache = self._caches.get(request_id)
        if cache is not None:
            cache.length = min(cache.length, length)

    def close(self, request_id: str) -> None:
        cache = self._caches.pop(request_id, None)
        if cache is not None:
            self._pool.free(cache)

    def _admit(self, ask: Ask) -> bool:
        if ask.count < 1 or ask.capacity > self._span.context:
            return False
        if ask.request_id not in self._caches:
            cache = self._pool.reserve(ask.capacity)
            if cache is None:
                return False
            self._caches[ask.request_id] = cache
        self.forget_after(ask.request_id, len(ask.tokens) - 1)
        return True

    def _extend(self, behind: Sequence[tuple[Ask, list[int]]]) -> None:
        """One more token for each whose text is read to its end; for others, a chunk of it."""
        caches = [self._caches[ask.request_id] for ask, _ in behind]
        lengths = [len(ask.tokens) + len(own) for ask, own in behind]
        news = [
            [*ask.tokens[cache.length : cache.length + PREFILL_CHUNK], *own[-1:]]
            for cache, (ask, own) in zip(caches, behind, strict=True)
        ]
        segments = [
            Segment(cache, len(new), cache.length) for cache, new in zip(caches, news, strict=True)
        ]
        positions = [p for segment in segments for p in range(segment.position, segment.end)]
        hidden = self._span.embed([token for new in news for token in new], positions)
        output = self._span.forward(hidden, RaggedBatch(segments))
        last = on_device([len(new) for new in news], output.device).cumsum(0) - 1
        chosen = sample(
            self._span.logits(output[last]),
            [ask.sampling for ask, _ in behind],
            lengths,
        )
        for (_, own), cache, length, token in zip(behind, caches, lengths, chosen, strict=True):
            if cache.length == length:
                own.append(token)
