"""What a node has sent on, kept so that a new next node can be given all of it.

The idea is Petals' (Borzunov et al. 2023): a span's inputs are kept by the side that sent them, so
that the death of one node costs only that node's work again.
"""

import torch


class ReplayBuffer:
    """Hidden states of positions ``[0, length)`` of one generation, on the CPU.

    Position is the truth here too: what is sent again from an earlier position replaces the rest.
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []
        self.length = 0

    def put(self, position: int, hidden: torch.Tensor) -> None:
        """``[rows, width]`` for positions from ``position`` on, which follows or precedes what
        is there already."""
        while self.length > position:
            last = self._parts.pop()
            self.length -= len(last)
            if self.length < position:
                self._append(last[: position - self.length])
        if self.length == position:
            self._append(hidden)

    def upto(self, end: int) -> torch.Tensor | None:
        """``[end, width]``; none if not all of it is here."""
        if self.length < end or not self._parts:
            return None
        self._parts = [torch.cat(self._parts)]
        return self._parts[0][:end]

    def clear(self) -> None:
        self._parts.clear()
        self.length = 0

    def _append(self, hidden: torch.Tensor) -> None:
        # A copy: a view would keep all rows of its forward.
        self._parts.append(hidden.to("cpu", copy=True))
        self.length += len(hidden)
