"""A GPU as NVML sees it."""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import torch


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """Usage of a GPU by all processes: percent of the last moments, and 10⁹ bytes. Zeros where
    nothing is known."""

    utilization_percent: float = 0.0
    vram_used_gb: float = 0.0


class GpuMonitor:
    """Reads a GPU's usage by NVML, the driver's library. For other devices the usage is zero."""

    def __init__(self, device: "torch.device") -> None:
        self._nvml, self._handle = _open(device)

    def read(self) -> GpuUsage:
        """The GPU's usage now."""
        if self._nvml is None:
            return GpuUsage()
        try:
            percent = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        except self._nvml.NVMLError as error:
            log.warning("gpu_unreadable", reason=str(error))
            return GpuUsage()
        return GpuUsage(float(percent), used / 1e9)

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def _open(device: "torch.device") -> tuple[Any, Any]:
    """NVML and its handle of the GPU; none where there is none."""
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
