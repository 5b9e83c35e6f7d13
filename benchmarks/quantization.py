"""Effect of 8-bit and 4-bit weights: `python -m benchmarks.quantization --help`."""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from benchmarks.checkpoints import models
from benchmarks.common import machine
from demo.corpus import is_held_out, library_documents, reference_documents, without_repeats
from market.placement.solver import even_split
from mesh.model.memory_footprint import footprint
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel

DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"
ROUTES = (
    ("none", "none", "none"),
    ("int8", "int8", "int8"),
    ("nf4", "nf4", "nf4"),
    ("none", "int8", "nf4"),
    ("nf4", "int8", "none"),
)
WINDOW = 1024
"""Tokens that predict each other: the demo model's context."""

PROMPT = 16
"""Tokens before the steps that are timed."""

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class QuantizedRoute:
    """Spans that cover a model, run in this process, so that no time goes into messages."""

    spans: list[SpanModel]

    @classmethod
    def load(cls, model: Path, quantizations: Sequence[str], cache: Path) -> "QuantizedRoute":
        config = json.loads((model / "config.json").read_text())
        spans = []
        cuts = even_split(config["num_hidden_layers"], len(quantizations))
        for layers, quantization in zip(cuts, quantizations, strict=True):
            edge = layers[0] == 0
            folder, _ = prepare_span(str(model), layers=layers, edge=edge, cache=cache)
            cpu = torch.device("cpu")
            span = SpanModel(
                folder, edge=edge, device=cpu, dtype=torch.float32, quantization=quantization
            )
            span.warm_up()
            spans.append(span)
        return cls(spans)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for span in self.spans for weight in span.weights)

    def logits(self, text: Sequence[int]) -> torch.Tensor:
        """``[length, vocab]`` of a text in one batch."""
        return self._step(list(text), 0, self._caches(len(text)))

    def rate(self, tokens: int) -> float:
        """Steps of one row a second."""
        caches = self._caches(PROMPT + tokens)
        self._step([1] * PROMPT, 0, caches)
        began = time.perf_counter()
        for position in range(PROMPT, PROMPT + tokens):
            self._step([1], position, caches)
        return tokens / (time.perf_counter() - began)

    def _caches(self, length: int) -> list[KVCache]:
        caches = []
        for span in self.spans:
            blocks = -(-length // span.kv_shape.block_size)
            cache = KVBlockPool(span.kv_shape, blocks * span.kv_shape.bytes_per_block).reserve(
                length
            )
            assert cache is not None
            caches.append(cache)
        return caches

    def _step(self, tokens: list[int], position: int, caches: list[KVCache]) -> torch.Tensor:
        hidden = self.spans[0].embed(tokens, list(range(position, position + len(tokens))))
        for span, cache in zip(self.spans, caches, strict=True):
            hidden = span.forward(hidden, RaggedBatch([Segment(cache, len(tokens), position)]))
        return self.spans[0].logits(hidden)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of speed of each route.")] = 7,
    tokens: Annotated[int, typer.Option(min=1, help="Steps in each.")] = 48,
    speed: Annotated[bool, typer.Option(help="Measure speed.")] = True,
) -> None:
    """Compare three-span routes of the demo model, each span quantized in its own way.

    Perplexity is over text that the model was not trained on, and over as much that it was. The
    error is that of the logits on the former, as a part of what they are. All in float32 but for
    the weights that are quantized.

    Speed is that of steps of one row through all spans, the edge and the head, in one process with
    one thread; routes take turns, and figures are medians of what each round says of the first
    route. S is the demo model; M a Llama of 98M random weights.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="far-quantization-") as folder:
        cache = Path(folder)
        routes = [QuantizedRoute.load(DEMO_MODEL, route, cache) for route in ROUTES]
        unseen, learned = _texts()
        console.print(f"{WINDOW * len(unseen)} tokens of each text.")
        console.print(_effects(routes, unseen, learned))
        if speed:
            medium = models.medium(cache / "M").folder
            sides = {
                "S": routes,
                "M": [QuantizedRoute.load(medium, route, cache) for route in ROUTES],
            }
            console.print(_speeds(sides, rounds, tokens))
    console.print(machine.summary(), soft_wrap=True)


def _effects(
    routes: Sequence[QuantizedRoute], unseen: list[list[int]], learned: list[list[int]]
) -> Table:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    edge = footprint(config, dtype_bytes=4).edge
    table = Table("spans", "layers, MB", "logits off by", "perplexity: unseen", "learned")
    exact = [routes[0].logits(text) for text in unseen]
    for route, quantizations in zip(routes, ROUTES, strict=True):
        logits = [route.logits(text) for text in unseen]
        wrong = sum((a - b).square().sum().item() for a, b in zip(logits, exact, strict=True))
        error = math.sqrt(wrong / sum(part.square().sum().item() for part in exact))
        table.add_row(
            " ".join(quantizations),
            f"{(route.weight_bytes - edge) / 1e6:.2f}",
            f"{100 * error:.2f} %",
            f"{_perplexity(logits, unseen):.2f}",
            f"{_perplexity([route.logits(text) for text in learned], learned):.3f}",
        )
    return table


def _texts() -> tuple[list[list[int]], list[list[int]]]:
    """Windows of text that the demo model's training held out, and as many that it learned from."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    documents = without_repeats(library_documents()[0] + reference_documents())
    texts = tokenizer.encode_batch(["\n\n".join(each.paragraphs) for each in documents])
    seen: list[int] = []
    unseen: list[int] = []
    for index, text in enumerate(texts):
        (unseen if is_held_out(index) else seen).extend(text.ids)
    count = len(unseen) // WINDOW
    return _windows(unseen, count, WINDOW), _windows(seen, count, len(seen) // count)


def _windows(tokens: list[int], count: int, step: int) -> list[list[int]]:
    return [tokens[number * step :][:WINDOW] for number in range(count)]


def _perplexity(logits: Sequence[torch.Tensor], texts: Sequence[Sequence[int]]) -> float:
    costs = [
        cross_entropy(part[:-1], torch.tensor(text[1:]))
        for part, text in zip(logits, texts, strict=True)
    ]
    return math.exp(sum(cost.item() for cost in costs) / len(costs))


def _speeds(sides: dict[str, list[QuantizedRoute]], rounds: int, tokens: int) -> Table:
    table = Table("spans")
    for figure in ("tokens/s", "of the first"):
        for name in sides:
            table.add_column(f"{name}, {figure}")
    measured = {
        name: [[route.rate(tokens) for route in routes] for _ in range(rounds)]
        for name, routes in sides.items()
    }
    for number, quantizations in enumerate(ROUTES):
        rates = [median(each[number] for each in of) for of in measured.values()]
        ratios = [median(each[number] / each[0] for each in of) for of in measured.values()]
        table.add_row(
            " ".join(quantizations),
            *(f"{rate:.1f}" for rate in rates),
            *(f"{ratio:.2f}" for ratio in ratios),
        )
    return table


if __name__ == "__main__":
    typer.run(main)
