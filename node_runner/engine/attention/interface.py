"""What attention works on: segments of a ragged batch, groups of segments, and how to score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache

MAX_GROUPED_ROWS = 16
"""Rows of a segment, at most, for it to attend together with others."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``rows`` consecutive positions of one generation, from ``position`` on, each of which is a
    row of the batch."""

    cache: KVCache
    rows: int
    position: int

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.position + self.rows


class Group(Protocol):
    """Segments of equally many rows that attend together."""

    rows: int

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: "ScoreModifier"
    ) -> torch.Tensor:
        """Attend to all that the segments' KV caches hold, up to each row's own position.

        Args:
            query: ``[rows, heads, key_dim]``.
            keys: The pool's, of one layer, ``[positions, kv_heads, key_dim]``; those of the rows
                are in it.
            values: The pool's, of that layer, ``[positions, kv_heads, value_dim]``.
            score: How to score.

        Returns:
            ``[rows, heads, value_dim]``.
        """


class BatchLayout(Protocol):
    """What attention knows of a ragged batch: into which ``slots`` of the pool its rows' keys and
    values go, int64 ``[rows]``, and in which groups they attend."""

    @property
    def pool(self) -> KVBlockPool: ...
    @property
    def slots(self) -> torch.Tensor: ...
    @property
    def groups(self) -> Sequence[Group]: ...


@dataclass(frozen=True, slots=True)
class ScoreModifier:
    """How a layer scores keys, beyond their product with the query.

    Args:
        scaling: Factor; one over the root of the heads' width if not given.
        window: Positions that a row sees, itself included; all before it if not given.
        softcap: Scores are kept within ± this number by tanh (gemma 2).
        sinks: ``[heads]``, scores that take weight and have no value (attention sinks: gpt_oss).
        slopes: ``[heads]``, by which a score falls with distance (ALiBi, Press et al. 2021: bloom).
        key_bias: From positions ``[length]`` to ``[heads, length]``: what is added to the scores of
            keys at these positions, whatever the query (falcon's ALiBi, which is rounded).
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    key_bias: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether fused kernels know the scores: they add a bias, and no more."""
        return self.softcap is None and self.sinks is None

    @property
    def by_head(self) -> torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None:
        """What makes the bias of scores differ by head; none if nothing does."""
        return self.key_bias if self.slopes is None else self.slopes
