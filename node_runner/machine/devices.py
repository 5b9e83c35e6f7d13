"""The devices that this machine computes on, and the memory of each."""

from dataclasses import dataclass

import torch

from node_runner.engine.device.tensors import DTYPES
from node_runner.machine.main_memory import available_main_memory

GPU_RESERVE = 10**9
"""Bytes of a GPU that stay free beside weights and KV: the driver's, torch's, what a step needs."""

MAIN_MEMORY_SHARE = 0.5
"""Share of main memory that a node on a CPU may take: other programs need the rest."""

BFLOAT16_CAPABILITY = (8, 0)
"""CUDA compute capability (Ampere) from which on a GPU multiplies in bfloat16 itself; older ones
emulate it, many times slower than float16."""


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """A GPU. ``memory``: bytes in all; ``free``: bytes that nothing uses."""

    index: int
    name: str
    memory: int
    free: int


def gpus() -> list[GpuInfo]:
    """The GPUs that torch can use."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        free, memory = torch.cuda.mem_get_info(index)
        found.append(GpuInfo(index, torch.cuda.get_device_name(index), memory, free))
    return found


def pick_device(name: str) -> torch.device:
    """The torch device called ``name``; ``auto`` is a GPU, if there is one.

    Raises:
        ValueError: there is no such device here; the message says what to do.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU here. Use --device cpu, or install a CUDA build.")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device is cpu, cuda or cuda:N; got {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no {name}: torch finds {torch.cuda.device_count()} GPUs here.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype called ``name``; ``auto``: float32 on a CPU, bfloat16 on a GPU that has it,
    float16 on an older one.

    Raises:
        ValueError: not one of ours.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if _has_bfloat16(device) else torch.float16
    if name not in DTYPES:
        raise ValueError(f"--dtype is one of auto, {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:  # all GPUs that ROCm supports do
        return True
    return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def available_memory(device: torch.device) -> int:
    """Bytes that weights and KV may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(0, free - GPU_RESERVE)
    return round(available_main_memory() * MAIN_MEMORY_SHARE)
