"""What comes out of one step of the engine, gathered on the way."""

import torch

from mesh.wire import Step, Steps
from mesh.wire.limits import MAX_STEPS
from node_runner.engine.tensor_codec import to_bytes
from node_runner.outputs import EngineOutput, NodeMessage


class OutputBatcher:
    """Results in the order of their making; steps that go to the same node together, and first."""

    def __init__(self, wire_dtype: str) -> None:
        self._wire_dtype = wire_dtype
        self._steps: dict[str, list[tuple[Step, torch.Tensor]]] = {}
        self._forwards: list[EngineOutput] = []
        self._others: list[EngineOutput] = []

    def add(self, *results: EngineOutput) -> None:
        self._others += results

    def send(self, to: str, step: Step, hidden: torch.Tensor) -> None:
        """``hidden``: ``[step.rows, width]``."""
        waiting = self._steps.setdefault(to, [])
        if sum(earlier.rows for earlier, _ in waiting) + step.rows > MAX_STEPS:
            self._flush(to)
        self._steps[to].append((step, hidden))

    def take(self) -> list[EngineOutput]:
        """All of them."""
        for to in self._steps:
            self._flush(to)
        return self._forwards + self._others

    def _flush(self, to: str) -> None:
        waiting, self._steps[to] = self._steps[to], []
        if not waiting:
            return
        rows = [hidden for _, hidden in waiting]
        together = rows[0] if len(rows) == 1 else torch.cat(rows)
        data = to_bytes(together, self._wire_dtype)
        steps = Steps([step for step, _ in waiting], self._wire_dtype, together.shape[1], data)
        self._forwards.append(NodeMessage(to, steps))
