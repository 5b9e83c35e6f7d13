"""Weights in huge pages, where the system has them: a short step reads each weight once, and then
it counts how memory is paged (a tenth of a step of 100M parameters)."""

import mmap
from collections.abc import Sequence

import torch

CACHE_LINE = 64
HUGE_PAGE = 2 * 2**20


def use_huge_pages(weights: Sequence[torch.Tensor]) -> None:
    """Move weights that lie in main memory into one block of huge pages (Linux only)."""
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
