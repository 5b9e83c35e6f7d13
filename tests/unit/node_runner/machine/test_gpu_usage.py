"""What a node reads of its device. No machine of ours has an NVIDIA driver: NVML is played by the
module below, with the real module's names, so what is tested is what we make of its answers."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch

from node_runner.machine.devices import GPU_RESERVE, available_memory
from node_runner.machine.gpu_usage import GpuMonitor, GpuUsage

UUID = "b8ae8e3a-6a0c-4d5e-9d8e-000000000001"
CUDA = torch.device("cuda", 1)


class NvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The driver's library as `pynvml` shows it, and a GPU of torch that it knows."""
    played = types.ModuleType("pynvml")
    handles = {f"GPU-{UUID}": "the second"}
    played.NVMLError = NvmlError
    played.opened = 0

    def initialize() -> None:
        played.opened += 1

    def shut_down() -> None:
        played.opened -= 1

    def by_uuid(uuid: str) -> str:
        if uuid not in handles:
            raise NvmlError("Not Found")
        return handles[uuid]

    played.nvmlInit, played.nvmlShutdown = initialize, shut_down
    played.nvmlDeviceGetHandleByUUID = by_uuid
    played.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=63, memory=20)
    played.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=20_500_000_000)
    monkeypatch.setitem(sys.modules, "pynvml", played)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID)
    )
    return played


def test_the_played_names_are_the_real_modules() -> None:
    import pynvml  # noqa: PLC0415 - the real one

    for name in (
        "NVMLError",
        "nvmlInit",
        "nvmlShutdown",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo",
    ):
        assert hasattr(pynvml, name)


def test_use_of_a_gpu(nvml: types.ModuleType) -> None:
    gpu = GpuMonitor(CUDA)
    assert gpu.read() == GpuUsage(utilization_percent=63, vram_used_gb=20.5)
    gpu.close()
    assert nvml.opened == 0


def test_a_gpu_that_the_driver_does_not_name(
    nvml: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="another")
    )
    assert GpuMonitor(CUDA).read() == GpuUsage()


def test_a_driver_that_stops_answering(nvml: types.ModuleType) -> None:
    """The node serves on, and says nothing of its GPU."""
    gpu = GpuMonitor(CUDA)

    def lost(handle: str) -> None:
        raise NvmlError("GPU is lost")

    nvml.nvmlDeviceGetUtilizationRates = lost
    assert gpu.read() == GpuUsage()
    gpu.close()


def test_a_cpu_uses_no_gpu_and_needs_no_driver() -> None:
    gpu = GpuMonitor(torch.device("cpu"))
    assert gpu.read() == GpuUsage()
    gpu.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_room_on_a_cpu_is_what_the_system_can_give() -> None:
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50


def test_room_on_a_gpu_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 24 * 10**9))
    assert available_memory(CUDA) == 20 * 10**9 - GPU_RESERVE
