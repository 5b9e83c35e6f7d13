"""Segments, groups, score modifiers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache

FEW_ROWS = 16
"""Segments of at most so many rows attend together."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``rows`` consecutive positions of one generation, from ``position`` on."""

    cache: KVCache
    rows: int
    position: int

    @property
    def end(self) -> int:
        return self.position + self.rows


class Group(Protocol):
    """Segments of equally many rows that attend together."""

    rows: int

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: "ScoreModifier"
    ) -> torch.Tensor:
        """
        Args:
            query: ``[rows, heads, key_dim]``.
            keys: The pool's, of one layer; those of the rows are in it.
            values: The pool's.
            score: How to score.

        Returns:
            ``[rows, heads, value_dim]``.
        """


class BatchLayout(Protocol):
    """What attention knows of a pack: into which ``slots`` of the pool its rows go, ``[rows]``,
    and in which groups they attend."""

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
        window: A row sees so many positions, itself included; all if not given.
        softcap: Scores are kept within ± this by tanh (gemma 2).
        sinks: ``[heads]``, scores that take weight and give nothing (gpt_oss).
        slopes: ``[heads]``, by which a score falls with distance (ALiBi: bloom).
        key_bias: From positions ``[length]`` to ``[heads, length]``: what keys gain by where they
            lie, whoever looks (falcon's ALiBi, which is rounded).
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    key_bias: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def by_head(self) -> torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None:
        """Why what is added to scores differs by head, if it does."""
        return self.key_bias if self.slopes is None else self.slopes
