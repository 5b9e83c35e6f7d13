"""How weights lie in main memory: what is left of loading them, and in which pages."""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

CACHE_LINE = 64
HUGE_PAGE = 2 * 2**20

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt` parameters."""

LOADING = 2**17
"""Bytes from which on a piece of memory goes back to the system when it is freed, while loading.
Where glibc starts, before it adapts."""

COMPUTING = 32 * 2**20
"""The same afterwards: where glibc's adapting ends. With less, each step would map pages anew."""


@contextmanager
def returning_memory() -> Iterator[None]:
    """Within, what is freed goes back to the system (glibc only).

    Else pieces of up to 32 MB stay in the heap, and quantizing leaves gaps there that the next
    tensor does not fit in: a span of 44 MB kept 370 MB.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LOADING)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        libc.mallopt(MMAP_THRESHOLD, COMPUTING)
        libc.mallopt(TRIM_THRESHOLD, 2 * COMPUTING)


def use_huge_pages(weights: Sequence[torch.Tensor]) -> None:
    """Move weights that lie in main memory into one block of huge pages (Linux only).

    A short step reads each weight once, and then it counts how memory is paged: a tenth of a step
    of 100M parameters.
    """
    weights = [weight for weight in weights if weight.device.type == "cpu"]
    if not hasattr(mmap, "MADV_HUGEPAGE") or not weights:
        return
    sizes = [_round_up(weight.nbytes, CACHE_LINE) for weight in weights]
    # Whole pages: only then does the system put the block where huge pages can lie.
    size = _round_up(sum(sizes), HUGE_PAGE)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    places = torch.frombuffer(block, dtype=torch.uint8)[: sum(sizes)].split(sizes)
    for weight, place in zip(weights, places, strict=True):
        moved = place[: weight.nbytes].view(weight.dtype).view(weight.shape)
        weight.data = moved.copy_(weight.data)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
