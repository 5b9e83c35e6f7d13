"""A small model on the edge that drafts tokens ahead of the pipeline (speculative decoding).

Drafts are sampled with the draws (seed and position) of the tokens that they stand for, after the
penalties of their requests: where both models give the same probabilities they choose the same
tokens, at any temperature. The checkpoint's other generation settings are left to verification.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mesh.errors import UnsupportedModel
from mesh.wire import SamplingParams
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.decoding.penalties import PenalizedRow, Penalties, penalize
from node_runner.engine.decoding.sampler import NOT_FINITE, sample
from node_runner.engine.device.tensors import on_device
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel

DRAFT_PREFILL_CHUNK = 512
"""Positions of one prompt that the draft model computes before the edge does other work."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A request for draft tokens of one generation.

    Args:
        request_id: The generation's.
        tokens: Its text so far.
        count: Tokens to draft at most.
        capacity: Tokens that its text has at most, when it ends.
        sampling_params: How its tokens are sampled.
        penalties: What its request has taken from logits and added to them, if anything.
    """

    request_id: str
    tokens: Sequence[int]
    count: int
    capacity: int
    sampling_params: SamplingParams
    penalties: Penalties | None


def load_draft_span(
    source: str, target: SpanModel, *, cache: Path, cache_bytes: int | None = None
) -> SpanModel:
    """All layers of a small model that is to draft the target's tokens.

    Args:
        source: Local folder of a checkpoint in safetensors, or a hub id.
        target: The edge's span.
        cache: Folder under which span checkpoints are kept.
        cache_bytes: What they may take together; half of the disk if not given.

    Raises:
        UnsupportedModel: no such model, none that the engine serves, or another vocabulary.
    """
    folder, _ = prepare_span(source, layers=None, edge=True, cache=cache, cache_bytes=cache_bytes)
    span = SpanModel(
        folder,
        edge=True,
        device=target.device,
        dtype=target.dtype,
        batch_invariant=False,  # a draft token is verified, however it came about
    )
    same_rows = span.vocab_size == target.vocab_size
    if not same_rows or span.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise UnsupportedModel(f"The draft model {source} has another vocabulary than the model.")
    span.warm_up()
    return span


class DraftModel:
    """Drafts for many generations in the same forward passes.

    Args:
        span: All layers of the small model, as :func:`load_draft_span` gives them.
        positions: Capacity of its KV caches, all together.
    """

    def __init__(self, span: SpanModel, *, positions: int) -> None:
        self._span = span
        self.pool = KVBlockPool(span.kv_shape, positions * span.kv_shape.bytes_per_position)
        self._caches: dict[str, KVCache] = {}

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """For each request, up to ``count`` tokens; none where there is no free KV, or where a
        prompt's last chunk is not computed yet."""
        drafts: list[list[int]] = [[] for _ in requests]
        unfinished = [
            (request, draft)
            for request, draft in zip(requests, drafts, strict=True)
            if self._admit(request)
        ]
        while unfinished:
            unfinished = self._extend(unfinished)
        return drafts

    def truncate(self, request_id: str, length: int) -> None:
        """Forget a generation's KV from position ``length`` on: its draft tokens were rejected."""
        cache = self._caches.get(request_id)
        if cache is not None:
            cache.length = min(cache.length, length)

    def close(self, request_id: str) -> None:
        """Free a generation's KV cache, if it has one."""
        cache = self._caches.pop(request_id, None)
        if cache is not None:
            self.pool.free(cache)

    def _admit(self, request: DraftRequest) -> bool:
        if request.count < 1 or request.capacity > self._span.max_positions:
            return False
        if request.request_id not in self._caches:
            cache = self.pool.reserve(request.capacity)
            if cache is None:
                return False
            self._caches[request.request_id] = cache
        self.truncate(request.request_id, len(request.tokens) - 1)
        return True

    def _extend(
        self, unfinished: Sequence[tuple[DraftRequest, list[int]]]
    ) -> list[tuple[DraftRequest, list[int]]]:
        """One forward pass: one more draft token for each request whose text is in its KV cache;
        for others, a chunk of the text. Returns requests that want one more."""
        caches = [self._caches[request.request_id] for request, _ in unfinished]
        lengths = [len(request.tokens) + len(draft) for request, draft in unfinished]
        inputs = [
            [*request.tokens[cache.length : cache.length + DRAFT_PREFILL_CHUNK], *draft[-1:]]
            for cache, (request, draft) in zip(caches, unfinished, strict=True)
        ]
        segments = [
            Segment(cache, len(tokens), cache.length)
            for cache, tokens in zip(caches, inputs, strict=True)
        ]
        positions = [p for segment in segments for p in range(segment.position, segment.end)]
        hidden = self._span.embed([token for tokens in inputs for token in tokens], positions)
        output = self._span.forward(hidden, RaggedBatch(segments))
        last = on_device([len(tokens) for tokens in inputs], output.device).cumsum(0) - 1
        sampled = sample(
            self._span.logits(output[last]),
            [request.sampling_params for request, _ in unfinished],
            lengths,
            process=partial(
                penalize,
                rows=[
                    PenalizedRow(request.penalties, request.tokens, draft)
                    for request, draft in unfinished
                ],
            ),
        )
        wanting = []
        for (request, draft), cache, length, token in zip(
            unfinished, caches, lengths, sampled, strict=True
        ):
            if token == NOT_FINITE:
                self.pool.zero(cache)
                self.close(request.request_id)
            elif cache.length == length:
                draft.append(token)
                if len(draft) < request.count:
                    wanting.append((request, draft))
        return wanting
