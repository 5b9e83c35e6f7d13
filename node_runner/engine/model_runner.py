"""Runs a batch through a span's layers, and keeps values that are not finite out of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mesh.wire import GenerationRefused
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.device.tensors import concatenated, is_finite
from node_runner.engine.generation import WorkItem
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.refusals import refuse, refuse_sender


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a forward pass gave: ``items`` with their hidden states ``[item.rows, hidden]``, and
    refusals of generations whose inputs or outputs were not finite."""

    items: list[tuple[WorkItem, torch.Tensor]] = field(default_factory=list)
    refused: list[GenerationRefused] = field(default_factory=list)


class ModelRunner:
    """Runs batches through a span on the node ``node_id``."""

    def __init__(self, span: SpanModel, node_id: str) -> None:
        self._span = span
        self._node_id = node_id
        self._forwards: list[tuple[int, int]] = []

    def run(self, batch: Sequence[WorkItem]) -> ModelOutput:
        """One forward pass over a batch, which may be empty; KV caches grow by its rows.

        An item that is not finite harms no other: its generation alone is stopped.
        """
        output = ModelOutput()
        hidden = self._inputs(batch)
        if hidden is not None and not is_finite(hidden):
            batch = self._finite(batch, output.refused)
            hidden = self._inputs(batch)
        if hidden is None:
            return output
        ragged = RaggedBatch([Segment(i.generation.cache, i.rows, i.position) for i in batch])
        computed = self._span.forward(hidden, ragged)
        self._forwards.append((len(batch), ragged.rows))
        all_finite = is_finite(computed)
        parts = computed.split_with_sizes([item.rows for item in batch])
        for item, rows in zip(batch, parts, strict=True):
            if all_finite or is_finite(rows):
                output.items.append((item, rows))
            else:
                output.refused.append(self._refuse_output(item))
        return output

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
            else:
                refused.append(refuse_sender(item.generation, "not_finite"))
        return kept

    def _refuse_output(self, item: WorkItem) -> GenerationRefused:
        generation = item.generation
        generation.halted = True
        generation.cache.pool.zero(generation.cache)
        return refuse(generation, "not_finite", node_id=self._node_id)
