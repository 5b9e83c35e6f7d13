"""Main memory: freed while weights load, and in huge pages where they stay."""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

CACHE_LINE = 64
HUGE_PAGE = 2 * 2**20

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt` parameters."""

LOADING_THRESHOLD = 2**17
"""Bytes of an allocation from which on it goes back to the system when it is freed, while weights
load. This is where glibc starts, before it adapts."""

COMPUTING_THRESHOLD = 32 * 2**20
"""Bytes of an allocation from which on it goes back to the system when it is freed, once weights
are loaded. This is where glibc's adapting ends; with less, each step would map pages anew."""


@contextmanager
def returning_memory() -> Iterator[None]:
    """Within this context freed memory goes back to the system at once (glibc only).

    Else allocations of up to 32 MB stay in the heap, and quantizing leaves gaps there that the next
    tensor does not fit in: a span of 44 MB kept 370 MB.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LOADING_THRESHOLD)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        libc.mallopt(MMAP_THRESHOLD, COMPUTING_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * COMPUTING_THRESHOLD)


def use_huge_pages(weights: Sequence[torch.Tensor]) -> None:
    """Move weights that are in main memory into one block of huge pages (Linux only).

    A short step reads each weight once, and looking pages up is then a tenth of a step of 100M
    parameters.

    Args:
        weights: Their storage is replaced; those on a GPU stay.
    """
    weights = [weight for weight in weights if weight.device.type == "cpu"]
    if not hasattr(mmap, "MADV_HUGEPAGE") or not weights:
        return
    sizes = [_round_up(weight.nbytes, CACHE_LINE) for weight in weights]
    # Whole pages: only then does the system align the block for huge pages.
    size = _round_up(sum(sizes), HUGE_PAGE)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    parts = torch.frombuffer(block, dtype=torch.uint8)[: sum(sizes)].split(sizes)
    for weight, part in zip(weights, parts, strict=True):
        moved = part[: weight.nbytes].view(weight.dtype).view(weight.shape)
        weight.data = moved.copy_(weight.data)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
