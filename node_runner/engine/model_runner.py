"""Runs a batch through a span's layers, and keeps values that are not finite out of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from mesh.wire import GenerationRefused
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.device.isolation import isolated
from node_runner.engine.device.tensors import concatenated, is_finite
from node_runner.engine.generation import FailGeneration, WorkItem
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.refusals import refuse_output, refuse_sender


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a forward pass gave: ``items`` with their hidden states ``[item.rows, hidden]``, and
    refusals of generations whose inputs or outputs were not finite."""

    items: list[tuple[WorkItem, torch.Tensor]] = field(default_factory=list)
    refused: list[GenerationRefused] = field(default_factory=list)


class ModelRunner:
    """Runs batches through a span on the node ``node_id``; ``fail`` ends a generation."""

    def __init__(self, span: SpanModel, node_id: str, fail: FailGeneration) -> None:
        self._span = span
        self._node_id = node_id
        self._fail = fail
        self._forwards: list[tuple[int, int]] = []

    def run(self, batch: Sequence[WorkItem]) -> ModelOutput:
        """One forward pass over a batch, which may be empty; KV caches grow by its rows.

        An item that is not finite, or with which the pass raises, harms no other: its generation
        alone is stopped.
        """
        output = ModelOutput()
        computed = isolated(
            partial(self._forward, refused=output.refused),
            batch,
            lambda item, error: self._fail(item.generation, error),
        )
        for items, hidden, all_finite in computed:
            parts = hidden.split_with_sizes([item.rows for item in items])
            for item, rows in zip(items, parts, strict=True):
                if all_finite or is_finite(rows):
                    output.items.append((item, rows))
                else:
                    refused = refuse_output(item.generation, "not_finite", node_id=self._node_id)
                    output.refused.append(refused)
        return output

    def _forward(
        self, batch: Sequence[WorkItem], refused: list[GenerationRefused]
    ) -> list[tuple[Sequence[WorkItem], torch.Tensor, bool]]:
        """One forward pass of the items whose inputs are finite, if there are any: these, their
        hidden states ``[rows, hidden]``, and whether all of them are finite.

        May be repeated: a position that is computed again is written again.
        """
        hidden = self._inputs(batch)
        if hidden is not None and not is_finite(hidden):
            batch = self._finite(batch, refused)
            hidden = self._inputs(batch)
        if hidden is None:
            return []
        ragged = RaggedBatch([Segment(i.generation.cache, i.rows, i.position) for i in batch])
        computed = self._span.forward(hidden, ragged)
        self._forwards.append((len(batch), ragged.rows))
        return [(batch, computed, is_finite(computed))]

    def pop_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward pass since the last call."""
        forwards, self._forwards = self._forwards, []
        return forwards

    def _inputs(self, batch: Sequence[WorkItem]) -> torch.Tensor | None:
        """``[rows, hidden]`` of all items, embedded at the edge; none if there are no items."""
        if not batch:
            return None
        if batch[0].hidden is None:
            return self._span.embed(
                [token for item in batch for token in item.token_ids],
                [position for item in batch for position in range(item.position, item.end)],
            )
        return concatenated([item.hidden for item in batch if item.hidden is not None])

    def _finite(
        self, batch: Sequence[WorkItem], refused: list[GenerationRefused]
    ) -> list[WorkItem]:
        """The items whose inputs are finite; senders of the others are refused."""
        kept = []
        for item in batch:
            if item.hidden is None or is_finite(item.hidden):
                kept.append(item)
            elif not item.generation.halted:  # else it was refused when the whole batch was tried
                refused.append(refuse_sender(item.generation, "not_finite"))
        return kept
