"""Matrix products whose rows are the same bits however many rows there are: batch-invariant.

A BLAS chooses its kernel by the number of rows, and kernels differ in the order in which they add
up, which rounds differently (He et al. 2025, "Defeating nondeterminism in LLM inference"). So rows
are padded to one of few counts that are known to add up in one order.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from node_runner.engine.device.tensors import concatenated

P = ParamSpec("P")
Output = TypeVar("Output")

ROW_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows of one product. More rows are cut, fewer are padded with zeros."""

REFERENCE_ROWS = {"cpu": 8, "cuda": 128}
"""The count that is always used, by device: all others have to give its bits. A GPU takes hardly
longer for 128 rows than for one, since it reads the weights in both cases."""

TILE = 32
"""Rows of a product whose kernels cannot be probed, such as those of 4-bit weights."""

PROBE_ROWS = 64
"""Rows of a weight that are drawn for a probe, which repeats them: drawing more takes longer than
the probe."""


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows @ weight.T + bias``: ``[..., in]`` and ``[out, in]`` to ``[..., out]``. What it gives
    for a row depends on that row alone."""
    counts = _row_counts(weight, biased=bias is not None)
    if rows.ndim == 2 and rows.shape[0] in counts:
        return functional.linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1])
    parts, begin = [], 0
    for taken, count in _pieces(len(flat), counts):
        part = flat[begin : begin + taken]
        if taken < count:
            part = functional.pad(part, (0, 0, 0, count - taken))
        parts.append(functional.linear(part.contiguous(), weight, bias)[:taken])
        begin += taken
    if not parts:
        return functional.linear(rows, weight, bias)
    return concatenated(parts).view(*rows.shape[:-1], -1)


class InvariantProducts(TorchFunctionMode):
    """Within this context, products of rows with a matrix are those of :func:`linear`, whoever
    computes them, and so are functions whose rounding depends on a number's place in a tensor.
    Products of batches of matrices stay as they are."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = _REPLACED.get(function, function)
        return replacement(*args, **(kwargs or {}))


def in_tiles(
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The computation of rows ``[..., in]`` to ``[..., out]``, by exactly :data:`TILE` rows at a
    time."""

    def computed(rows: torch.Tensor) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        whole = functional.pad(flat, (0, 0, 0, -len(flat) % TILE))
        output = torch.cat([compute(tile) for tile in whole.split(TILE)])[: len(flat)]
        return output.view(*rows.shape[:-1], -1)

    return computed


def with_invariant_products(compute: Callable[P, Output]) -> Callable[P, Output]:
    """The computation, with :class:`InvariantProducts`."""

    def computed(*args: P.args, **kwargs: P.kwargs) -> Output:
        with InvariantProducts():
            return compute(*args, **kwargs)

    return computed


def _matmul(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    if matrix.ndim != 2 or rows.ndim < 2:
        return torch.matmul(rows, matrix)
    return linear(rows, matrix.t())


def _addmm(bias: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return linear(rows, matrix.t(), bias)


def _sigmoid(numbers: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-numbers))


def _gelu(numbers: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Gaussian error linear units (Hendrycks and Gimpel 2016), of operations that torch computes
    alike for a whole vector and for what is left of one; it does not compute its own gelu so."""
    exact = numbers.float()
    if approximate == "tanh":
        inner = torch.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3))
    else:
        inner = torch.erf(exact * math.sqrt(0.5))
    return (0.5 * exact * (1 + inner)).to(numbers.dtype)


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: linear,
    functional.gelu: _gelu,
    torch.sigmoid: _sigmoid,
    torch.Tensor.sigmoid: _sigmoid,
    torch.addmm: _addmm,
    torch.mm: _matmul,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
}


def _row_counts(weight: torch.Tensor, *, biased: bool) -> tuple[int, ...]:
    threads = torch.get_num_threads()
    return _probed(*weight.shape, weight.stride(), weight.dtype, weight.device, biased, threads)


@cache
def _probed(
    width: int,
    depth: int,
    strides: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    biased: bool,
    _threads: int,
) -> tuple[int, ...]:
    """Of :data:`ROW_COUNTS`, those by which a product with a weight ``[width, depth]`` gives the
    reference's bits, wherever a row stands among the others.

    The sums of the probe are of numbers of very different sizes, and zero but for rounding: another
    order of adding up shows in nearly each of them, while in other sums the 16 bits that are kept
    would mostly hide it.
    """
    random = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(depth // 2, generator=random)

    def drawn(count: int, sign: int) -> torch.Tensor:
        half = torch.randn(count, depth // 2, generator=random)
        half *= 2.0 ** torch.randint(-6, 7, half.shape, generator=random)
        numbers = functional.pad(torch.cat([half, sign * half[:, shuffled]], -1), (0, depth % 2))
        return numbers.to(device, dtype)

    weight = torch.empty_strided((width, depth), strides, dtype=dtype, device=device)
    repeated = drawn(PROBE_ROWS, 1)
    for part in weight.split(PROBE_ROWS):
        part.copy_(repeated[: len(part)])
    bias = torch.zeros(width, dtype=dtype, device=device) if biased else None
    rows = drawn(ROW_COUNTS[-1], -1)

    def product(count: int) -> torch.Tensor:
        return torch.cat([functional.linear(part, weight, bias) for part in rows.split(count)])

    expected = product(REFERENCE_ROWS[device.type])
    return tuple(count for count in ROW_COUNTS if torch.equal(product(count), expected))


@cache
def _pieces(rows: int, counts: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """How rows are cut: how many a piece takes, and the count to which it is padded. Less than half
    of a piece is padding, unless there is no count as small."""
    pieces = []
    while rows:
        fitting = [count for count in counts if rows <= count < 2 * rows]
        below = [count for count in counts if count < rows]
        count = fitting[0] if fitting else below[-1] if below else counts[0]
        taken = min(rows, count)
        pieces.append((taken, count))
        rows -= taken
    return tuple(pieces)
