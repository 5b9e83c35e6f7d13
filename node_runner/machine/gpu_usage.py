"""What a node says of itself and its device in a heartbeat."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import torch

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Vitals:
    """One heartbeat's figures, all of them measured here.

    ``latency_ms``: a step. ``throughput_tokens_per_sec``: positions. ``current_requests``:
    generations that hold KV room. ``kv_positions``: what the whole KV cache has room for.
    ``hop_ms``: a message to the platform and back, 0 before the first. ``load_bytes_per_second``:
    weights, as the span was loaded. ``serves``: spans; ``cannot_serve``: the one that the node was
    told to load and could not.
    """

    is_healthy: bool = True
    latency_ms: float = 0.0
    throughput_tokens_per_sec: float = 0.0
    current_requests: int = 0
    kv_positions: int = 0
    hop_ms: float = 0.0
    load_bytes_per_second: float = 0.0
    gpu_utilization_percent: float = 0.0
    vram_used_gb: float = 0.0
    serves: Sequence[tuple[int, int]] = ()
    cannot_serve: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of all processes on the GPU: percent of the last moments, and 10⁹ bytes."""

    utilization_percent: float = 0.0
    vram_used_gb: float = 0.0


class Gpu:
    """A GPU as NVML, the driver's library, sees it; a device without one uses nothing."""

    def __init__(self, device: "torch.device") -> None:
        self._nvml, self._handle = _open(device)

    def use(self) -> GpuUse:
        """Now. Nothing where the driver does not say."""
        if self._nvml is None:
            return GpuUse()
        try:
            percent = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        except self._nvml.NVMLError as error:
            log.warning("gpu_unreadable", reason=str(error))
            return GpuUse()
        return GpuUse(float(percent), used / 1e9)

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def _open(device: "torch.device"):
    if device.type != "cuda":
        return None, None
    import pynvml  # noqa: PLC0415 - only where there is a GPU
    import torch  # noqa: PLC0415 - not for who only names a figure

    try:
        pynvml.nvmlInit()
        # By identity: CUDA_VISIBLE_DEVICES numbers GPUs anew, and NVML does not care for it.
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        log.warning("gpu_unreadable", reason=str(error))
        return None, None
