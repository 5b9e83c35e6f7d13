"""Hidden states that a node has sent on, kept so that a new next node can be sent all of them.

The idea is Petals' (Borzunov et al. 2023, arXiv 2312.08361): a span's inputs are kept by the node
that sent them, so that the death of one node costs only that node's computation again.
"""

import torch


class ReplayBuffer:
    """Hidden states of positions ``[0, length)`` of one generation, on the CPU.

    As in a KV cache, what is put at an earlier position replaces all that came after it.
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the buffer holds."""
        return sum(part.untyped_storage().nbytes() for part in self._parts)

    def put(self, position: int, hidden: torch.Tensor) -> None:
        """Keep a copy of hidden states; nothing if positions before them are missing.

        Args:
            position: The first row's.
            hidden: ``[rows, hidden]``, one row a position.
        """
        while self.length > position:
            last = self._parts.pop()
            self.length -= len(last)
            if self.length < position:
                self._append(last[: position - self.length])
        if self.length == position:
            self._append(hidden)

    def upto(self, end: int) -> torch.Tensor | None:
        """Hidden states ``[end, hidden]`` of the first ``end`` positions; none if not all of them
        are here."""
        if self.length < end or not self._parts:
            return None
        self._parts = [torch.cat(self._parts)]
        return self._parts[0][:end]

    def clear(self) -> None:
        """Drop all hidden states."""
        self._parts.clear()
        self.length = 0

    def _append(self, hidden: torch.Tensor) -> None:
        # A copy: a view would keep all rows of its batch.
        self._parts.append(hidden.to("cpu", copy=True))
        self.length += len(hidden)
