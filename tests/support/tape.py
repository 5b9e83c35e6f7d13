"""What a GPU's graph does, on a CPU: the same operations on the same memory again. What is not
copied to where they read it, is stale."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records operations, and does them again on the same memory."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        for func, args, kwargs, made in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    with Tape() as tape:
        output = compute()

    def replay() -> torch.Tensor:
        tape.play()
        return output

    return replay
