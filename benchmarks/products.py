"""Few rows times a large weight, in both orders: `python -m benchmarks.products --help`."""

import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import linear

SHAPES = ((1376, 256), (2304, 768), (4096, 768), (768, 2048), (11264, 2048), (2048, 5632))
"""Outputs and inputs, as in models S, M and L."""

ROWS = (1, 2, 3, 4, 5, 6, 8, 128)
OUT_OF_CACHE = 150_000_000
"""Bytes of weights to go through before one is read again."""


def main(repeats: int = typer.Option(6, min=1, help="The quickest of so many counts.")) -> None:
    """Microseconds of `rows @ weight.T` with one thread, by the number of rows: as `linear` does
    it, and with the weight on the left, which node_runner.engine.device.matmul chooses for two to
    five rows where a weight has more outputs than inputs.
    """
    torch.set_num_threads(1)
    table = Table("weight", "rows", "linear, µs", "weight on the left, µs", "ratio")
    for outputs, inputs in SHAPES:
        count = max(1, OUT_OF_CACHE // (4 * outputs * inputs))
        weights = [torch.randn(outputs, inputs) for _ in range(count)]
        for number in ROWS:
            rows = torch.randn(number, inputs)
            usual = _quickest(lambda w, x=rows: linear(x, w), weights, repeats)
            left = _quickest(lambda w, x=rows: (w @ x.t()).t().contiguous(), weights, repeats)
            shape, ratio = f"{outputs} x {inputs}", f"{left / usual:.2f}"
            table.add_row(shape, str(number), f"{usual:.0f}", f"{left:.0f}", ratio)
        table.add_section()
    Console().print(table)


@torch.inference_mode()
def _quickest(
    work: Callable[[torch.Tensor], object], weights: list[torch.Tensor], repeats: int
) -> float:
    """Microseconds a product, in the quickest of ``repeats`` passes over the weights."""

    def once() -> float:
        began = time.perf_counter()
        for weight in weights:
            work(weight)
        return (time.perf_counter() - began) / len(weights) * 1e6

    once()
    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    typer.run(main)
