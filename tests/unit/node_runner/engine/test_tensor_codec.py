"""Hidden states survive the wire: exactly, or as closely as their bits allow."""

import pytest
import torch

from mesh.errors import WireError
from mesh.wire import DTYPES, Step, Steps, tensor_bytes
from node_runner.engine.tensor_codec import from_steps, to_bytes

CPU = torch.device("cpu")


def sent(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    rows, width = tensor.shape
    data = to_bytes(tensor, dtype)
    assert len(data) == tensor_bytes(dtype, rows, width)
    steps = Steps([Step("req", 1, 0, rows, 0, False)], dtype, width, bytes(data))
    return from_steps(steps, width=width, dtype=tensor.dtype, device=CPU)


@pytest.mark.parametrize("width", [64, 100, 1, 257])
@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 9e-3)]
)
def test_values_come_back(dtype: str, error: float, width: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(5, width)
    largest = tensor.abs().amax()
    assert (sent(tensor, dtype) - tensor).abs().max() <= error * largest


def test_an_outlier_spoils_its_own_block_only() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(2, 256)
    tensor[0, 10] = 3000.0
    back = sent(tensor, "int8")
    torch.testing.assert_close(back[0, 10], tensor[0, 10], rtol=0.01, atol=0)
    assert (back[0, 64:] - tensor[0, 64:]).abs().max() < 0.04
    assert (back[1] - tensor[1]).abs().max() < 0.04


def test_zeros_and_what_is_not_finite_stay_so() -> None:
    assert (sent(torch.zeros(1, 64), "int8") == 0).all()
    assert not sent(torch.full((1, 64), float("nan")), "float16").isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_width_is_refused(dtype: str) -> None:
    data = bytes(tensor_bytes(dtype, 1, 8))
    with pytest.raises(WireError, match="width 8"):
        from_steps(
            Steps([Step("req", 1, 0, 1, 0, False)], dtype, 8, data),
            width=16,
            dtype=torch.float32,
            device=CPU,
        )


def test_what_float16_cannot_hold_becomes_its_largest_value() -> None:
    """It is finite in the sender's dtype, so nobody is to blame."""
    sent = torch.tensor([[1e5, -1e5, 2.0]], dtype=torch.bfloat16)
    steps = Steps([Step("req", 1, 0, 1, 0, False)], "bfloat16", 3, to_bytes(sent, "bfloat16"))
    received = from_steps(steps, width=3, dtype=torch.float16, device=CPU)
    assert received.tolist() == [[65504.0, -65504.0, 2.0]]
