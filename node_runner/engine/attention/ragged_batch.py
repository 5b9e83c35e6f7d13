"""Attention over a ragged batch: every segment attends to its own KV cache.

The linear layers of the model run once over the rows of all generations; attention alone is by
generation. Segments of equally few rows, which decode steps are, attend together, so that eight
generations cost as many operations as one.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import torch

from node_runner.engine.attention.batch_invariant import BatchInvariantGroup
from node_runner.engine.attention.gathered import GatheredGroup
from node_runner.engine.attention.interface import (
    MAX_GROUPED_ROWS,
    BatchLayout,
    Group,
    ScoreModifier,
    Segment,
)
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.paged import BlockTables, PagedGroup
from node_runner.engine.device.tensors import concatenated, on_device

MAX_GATHERED = 8192
"""Positions gathered for one group at most, padding included. Beyond, copying costs more than the
operations that it saves, and each segment attends by itself."""


class RaggedBatch:
    """The rows of one forward pass: those of its segments, one after the other.

    Args:
        segments: At least one, all of caches of one pool. Those of equally many rows should be
            neighbours: only neighbours attend together.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.pool: KVBlockPool = segments[0].cache.pool
        self.rows = sum(segment.rows for segment in segments)
        self.slots = concatenated(
            [segment.cache.slots[segment.position : segment.end] for segment in segments]
        )
        self.groups = _groups(segments)

    @cached_property
    def positions(self) -> torch.Tensor:
        """The position of each row, int64 ``[rows]``."""
        ranges = [range(segment.position, segment.end) for segment in self.segments]
        return on_device([p for span in ranges for p in span], self.slots.device)

    def commit(self) -> None:
        """All layers have run: the KV caches grow by the rows."""
        for segment in self.segments:
            segment.cache.length = segment.end


def attend(
    layout: BatchLayout,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: ScoreModifier,
) -> torch.Tensor:
    """Put the rows' keys and values into their KV caches; attend to all that these then hold, up to
    each row's own position.

    Args:
        layout: Where the rows go in the pool, and how they are grouped.
        layer: Index of the layer within the span.
        query: ``[rows, heads, key_dim]``, positions already encoded.
        key: ``[rows, kv_heads, key_dim]``, positions already encoded.
        value: ``[rows, kv_heads, value_dim]``.
        score: How to score.

    Returns:
        ``[rows, heads, value_dim]``.
    """
    keys, values = layout.pool.keys[layer], layout.pool.values[layer]
    keys.index_copy_(0, layout.slots, key)
    values.index_copy_(0, layout.slots, value)
    if len(layout.groups) == 1:
        return layout.groups[0].attend(query, keys, values, score)
    parts = query.split_with_sizes([group.rows for group in layout.groups])
    attended = [
        group.attend(part, keys, values, score)
        for group, part in zip(layout.groups, parts, strict=True)
    ]
    return torch.cat(attended)


def _groups(segments: Sequence[Segment]) -> list[Group]:
    pool = segments[0].cache.pool
    groups: list[Group] = []
    for rows, neighbours in groupby(segments, key=lambda segment: segment.rows):
        members = list(neighbours)
        fit = pool.shape.paged or len(members) * max(m.end for m in members) <= MAX_GATHERED
        parts = [members] if rows <= MAX_GROUPED_ROWS and fit else [[member] for member in members]
        groups += [_group(part) for part in parts]
    return groups


def _group(segments: Sequence[Segment]) -> Group:
    shape = segments[0].cache.pool.shape
    if shape.paged:
        return _paged(segments)
    return BatchInvariantGroup(segments) if shape.batch_invariant else GatheredGroup(segments)


def _paged(segments: Sequence[Segment]) -> PagedGroup:
    tables = BlockTables(len(segments), segments[0].cache.pool)
    tables.fill(segments)
    return PagedGroup(tables, each=segments[0].rows)
