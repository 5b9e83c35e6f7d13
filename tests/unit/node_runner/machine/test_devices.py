"""Which data type a device computes in."""

import pytest
import torch

from node_runner.machine.devices import pick_dtype

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", GPU) is expected
    assert pick_dtype("bfloat16", GPU) is torch.bfloat16


def test_a_cpu_computes_in_float32() -> None:
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(ValueError, match="--dtype is one of auto, float32, bfloat16, float16"):
        pick_dtype("float8", torch.device("cpu"))
