"""Runs work on many items so that one that fails takes no other along; what is fatal stays fatal.

Fatal is what makes the process useless for all: an error of the device, after which CUDA answers
nothing any more, and memory that is lacking even for one item after what can be freed was freed.
"""

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import structlog
import torch

Item = TypeVar("Item")
Output = TypeVar("Output")

Failed = Callable[[Item, BaseException], None]
"""Is told of an item whose work raised, and of the exception."""

DEVICE_ERRORS = ("CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "NCCL error")
"""Errors of a device that torch raises as plain runtime errors contain one of these."""

PANIC = "PanicException"
"""What a panic in Rust code, such as a tokenizer's, is raised as. It is no `Exception`."""

log = structlog.get_logger()


def isolated(
    work: Callable[[Sequence[Item]], list[Output]],
    items: Sequence[Item],
    failed: Failed[Item],
    *,
    last_try: bool = False,
) -> list[Output]:
    """What work gives for a batch, without the items for which it raises alone.

    If it raises for the batch, it is given each half, down to single items. So it has to be
    repeatable: what it changes before it raises must not count.

    Args:
        work: Gives outputs for items.
        items: The batch; may be empty.
        failed: Is told of each item for which it raises alone.
        last_try: Whether a lack of memory is fatal, since all was freed that can be.
    """
    if not items:
        return []
    try:
        return work(items)
    except BaseException as error:
        no_memory = _is_out_of_memory(error)
        _raise_if_fatal(error, no_memory=no_memory and last_try)
        if len(items) == 1 and not no_memory:
            failed(items[0], error)
            return []
    if no_memory and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return isolated(work, items, failed, last_try=True)
    middle = len(items) // 2
    return [
        *isolated(work, items[:middle], failed),
        *isolated(work, items[middle:], failed),
    ]


def each_isolated(
    work: Callable[[Item], Output], items: Iterable[Item], failed: Failed[Item]
) -> list[Output]:
    """What work gives for each item, once; without the items for which it raises, of which
    ``failed`` is told. It needs not be repeatable."""
    outputs = []
    for item in items:
        try:
            outputs.append(work(item))
        except BaseException as error:
            _raise_if_fatal(error, no_memory=_is_out_of_memory(error))
            failed(item, error)
    return outputs


def described(error: BaseException) -> dict[str, str]:
    """An exception for the log: its type and where it was raised. Not its message, which may quote
    a prompt."""
    return {
        "error": type(error).__name__,
        "raised_at": "".join(traceback.format_tb(error.__traceback__)),
    }


def _raise_if_fatal(error: BaseException, *, no_memory: bool) -> None:
    if no_memory or _is_fatal(error):
        if isinstance(error, Exception):
            log.critical("engine_failed", no_memory=no_memory, **described(error))
        raise error


def _is_fatal(error: BaseException) -> bool:
    if not isinstance(error, Exception):
        return type(error).__name__ != PANIC
    if isinstance(error, MemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in DEVICE_ERRORS)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or main memory for a tensor, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
