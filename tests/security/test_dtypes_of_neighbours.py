"""A node sends finite values that are infinite in the dtype of a node behind its successor, so that
two honest nodes accuse each other."""

import itertools

import pytest
import torch

from mesh.wire import DTYPES as WIRE_DTYPES
from mesh.wire import Step, Steps
from node_runner.engine.device.tensors import DTYPES, is_finite
from node_runner.engine.tensor_codec import from_steps, to_bytes

CPU = torch.device("cpu")


def sent(hidden: torch.Tensor, wire_dtype: str, dtype: torch.dtype) -> torch.Tensor:
    rows, width = hidden.shape
    data = bytes(to_bytes(hidden, wire_dtype))
    steps = Steps([Step("req", 1, 0, rows, 0, False)], wire_dtype, width, data)
    return from_steps(steps, width=width, dtype=dtype, device=CPU)


@pytest.mark.parametrize(
    ("sender", "wire_dtype", "receiver"), [*itertools.product(DTYPES, WIRE_DTYPES, DTYPES)]
)
def test_what_is_finite_at_the_sender_is_finite_at_the_receiver(
    sender: str, wire_dtype: str, receiver: str
) -> None:
    largest = torch.finfo(DTYPES[sender]).max
    hidden = torch.zeros(2, 64, dtype=DTYPES[sender])
    hidden[0, 0], hidden[1, 1] = largest, -largest
    assert is_finite(hidden)
    received = sent(hidden, wire_dtype, DTYPES[receiver])
    assert received.dtype is DTYPES[receiver]
    assert is_finite(received)
    assert received[0, 0] > 1000 > -1000 > received[1, 1]


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_whether_values_are_finite_depends_on_no_order_of_adding_them(dtype: torch.dtype) -> None:
    large = torch.full((4, 64), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(large)
    for bad in (float("inf"), float("-inf"), float("nan")):
        large[3, 5] = bad
        assert not is_finite(large)


@pytest.mark.parametrize(
    ("wire_dtype", "receiver"),
    [*itertools.product([each for each in WIRE_DTYPES if each != "int8"], DTYPES)],
)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_on_the_wire_is_still_seen(
    wire_dtype: str, receiver: str, bad: float
) -> None:
    hidden = torch.zeros(1, 64)
    hidden[0, 3] = bad
    assert not is_finite(sent(hidden, wire_dtype, DTYPES[receiver]))
