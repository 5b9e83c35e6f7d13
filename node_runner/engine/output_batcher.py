"""Collects the outputs of one engine step; hidden states for one node go in one message."""

from collections.abc import Sequence
from functools import partial

import torch

from mesh.wire import Step, Steps
from mesh.wire.limits import MAX_STEPS
from node_runner.engine.device.isolation import isolated
from node_runner.engine.device.tensors import concatenated
from node_runner.engine.generation import FailGeneration, Generation
from node_runner.engine.tensor_codec import to_bytes
from node_runner.outputs import EngineOutput, NodeMessage

_Waiting = tuple[Generation, Step, torch.Tensor]


class OutputBatcher:
    """Collects a step's outputs.

    Args:
        wire_dtype: The dtype in which hidden states are sent (:data:`mesh.wire.DTYPES`).
        fail: Ends a generation.
    """

    def __init__(self, wire_dtype: str, fail: FailGeneration) -> None:
        self._wire_dtype = wire_dtype
        self._fail = fail
        self._steps: dict[str, list[_Waiting]] = {}
        self._messages: list[EngineOutput] = []
        self._others: list[EngineOutput] = []

    def add(self, *outputs: EngineOutput) -> None:
        """Add outputs that are not hidden states."""
        self._others += outputs

    def send(
        self,
        generation: Generation,
        position: int,
        hidden: torch.Tensor,
        rows_to_sample: int = 0,
        *,
        replay: bool = False,
    ) -> None:
        """Add hidden states for the generation's next node.

        Args:
            generation: Whose they are.
            position: The first row's.
            hidden: ``[rows, hidden]``, one row a position.
            rows_to_sample: Rows at the end after each of which the edge samples a token.
            replay: Whether they rebuild a new node's KV cache.
        """
        step = Step(
            generation.request_id, generation.epoch, position, len(hidden), rows_to_sample, replay
        )
        node = generation.stage_assignment.next_node
        waiting = self._steps.setdefault(node, [])
        if sum(earlier.rows for _, earlier, _ in waiting) + step.rows > MAX_STEPS:
            self._flush(node)
        self._steps[node].append((generation, step, hidden))

    def pop_outputs(self) -> list[EngineOutput]:
        """All outputs: hidden states for other nodes first, then the others in their order."""
        for node in self._steps:
            self._flush(node)
        return self._messages + self._others

    def _flush(self, node: str) -> None:
        waiting, self._steps[node] = self._steps[node], []
        self._messages += isolated(
            partial(self._message, node),
            waiting,
            lambda item, error: self._fail(item[0], error),
        )

    def _message(self, node: str, waiting: Sequence[_Waiting]) -> list[EngineOutput]:
        hidden = concatenated([hidden for _, _, hidden in waiting])
        data = to_bytes(hidden, self._wire_dtype)
        steps = Steps([step for _, step, _ in waiting], self._wire_dtype, hidden.shape[1], data)
        return [NodeMessage(node, steps)]
