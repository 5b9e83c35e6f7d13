"""Attention over a pack: every segment attends to its own KV cache.

The linear layers of the model run once over all packed rows; only here are generations told apart.
Segments of equally few rows, which decoding makes, attend together: their blocks are gathered side
by side, so that eight generations cost as many operations as one.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import torch

from node_runner.engine.attention.gathered import GatheredGroup, joined
from node_runner.engine.attention.interface import (
    FEW_ROWS,
    BatchLayout,
    Group,
    ScoreModifier,
    Segment,
)
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.paged import BlockTables, PagedGroup
from node_runner.engine.device.tensors import on_device

MAX_GATHERED = 8192
"""Positions gathered for one group, padding included. Beyond, copying costs more than operations
do, and each segment attends where its keys lie."""


class RaggedBatch:
    """The rows of one forward: its segments' rows, one after the other.

    Segments of equally many rows should be neighbours: they are what attends together.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.pool: KVBlockPool = segments[0].cache.pool
        self.rows = sum(segment.rows for segment in segments)
        self.slots = joined(
            [segment.cache.slots[segment.position : segment.end] for segment in segments]
        )
        self.groups = _groups(segments)

    @cached_property
    def positions(self) -> torch.Tensor:
        """The position of each row, ``[rows]``."""
        ranges = [range(segment.position, segment.end) for segment in self.segments]
        return on_device([p for span in ranges for p in span], self.slots.device)

    def close(self) -> None:
        """All layers have run: what was written is valid."""
        for segment in self.segments:
            segment.cache.length = segment.end


def attend(
    pack: BatchLayout,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: ScoreModifier,
) -> torch.Tensor:
    """Put the rows' keys and values into their caches; attend to all that these then hold.

    Args:
        pack: What the rows belong to.
        layer: Index of the layer within the span.
        query: ``[rows, heads, key_dim]``, positions already encoded.
        key: ``[rows, kv_heads, key_dim]``.
        value: ``[rows, kv_heads, value_dim]``.
        score: How to score.

    Returns:
        ``[rows, heads, value_dim]``.
    """
    keys, values = pack.pool.keys[layer], pack.pool.values[layer]
    keys.index_copy_(0, pack.slots, key)
    values.index_copy_(0, pack.slots, value)
    if len(pack.groups) == 1:
        return pack.groups[0].attend(query, keys, values, score)
    parts = query.split_with_sizes([group.rows for group in pack.groups])
    attended = [
        group.attend(part, keys, values, score)
        for group, part in zip(pack.groups, parts, strict=True)
    ]
    return torch.cat(attended)


def _groups(segments: Sequence[Segment]) -> list[Group]:
    pool = segments[0].cache.pool
    groups: list[Group] = []
    for rows, neighbours in groupby(segments, key=lambda segment: segment.rows):
        members = list(neighbours)
        fit = pool.shape.paged or len(members) * max(m.end for m in members) <= MAX_GATHERED
        parts = [members] if rows <= FEW_ROWS and fit else [[member] for member in members]
        for part in parts:
            groups.append(_paged(part) if pool.shape.paged else GatheredGroup(part))
    return groups


def _paged(segments: Sequence[Segment]) -> PagedGroup:
    tables = BlockTables(len(segments), segments[0].cache.pool)
    tables.fill(segments)
    return PagedGroup(tables, each=segments[0].rows)
