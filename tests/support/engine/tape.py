"""What a CUDA graph does, on a CPU: the same operations on the same memory again. An input that is
not copied to the memory that they read is stale."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records torch operations, and repeats them on the memory that they used."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        for func, args, kwargs, output in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A :data:`node_runner.engine.model.cuda_graphs.Capture` that needs no GPU."""
    with Tape() as tape:
        output = compute()

    def replay() -> torch.Tensor:
        tape.replay()
        return output

    return replay
