"""Effect of narrower hidden states on the output: `python -m benchmarks.wire --help`."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from benchmarks.common.output import console, workspace, write_results
from demo.corpus import is_held_out, library_documents, reference_documents, without_repeats
from market.placement.solver import even_split
from mesh import wire
from mesh.wire import Step, Steps
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.tensor_codec import from_steps, to_bytes
from stack.plan import DEMO_MODEL

NODES = 3
WINDOW = 512
"""Tokens of a text at most: each begins without context."""

PROMPT = 32
NEW_TOKENS = 64
"""Tokens given and generated where the model goes on by itself."""

CPU = torch.device("cpu")


class WireRoute:
    """Three spans, and a wire between them that carries hidden states as one dtype."""

    def __init__(self, spans: Sequence[SpanModel], dtype: str) -> None:
        self._spans = spans
        self._dtype = dtype
        self._pools = [KVBlockPool(span.kv_shape, 2 * 10**7) for span in spans]
        self._caches: list[KVCache] = []

    def __enter__(self) -> "WireRoute":
        """Reserve the KV caches of one generation."""
        reserved = [pool.reserve(WINDOW) for pool in self._pools]
        self._caches = [cache for cache in reserved if cache is not None]
        return self

    def __exit__(self, *_: object) -> None:
        for pool, cache in zip(self._pools, self._caches, strict=True):
            pool.free(cache)

    def hidden(self, token_ids: Sequence[int]) -> torch.Tensor:
        """What comes back to the edge, ``[rows, hidden]``, for the next tokens."""
        position = self._caches[0].length
        hidden = self._spans[0].embed(
            list(token_ids), list(range(position, position + len(token_ids)))
        )
        for span, cache in zip(self._spans, self._caches, strict=True):
            output = span.forward(hidden, RaggedBatch([Segment(cache, len(token_ids), position)]))
            hidden = self.transmit(output)
        return hidden

    def transmit(self, hidden: torch.Tensor) -> torch.Tensor:
        """Encode hidden states as a message, and decode them as the next node does."""
        rows, width = hidden.shape
        data = to_bytes(hidden, self._dtype)
        sent = wire.encode(Steps([Step("-", 1, 0, rows, 0, False)], self._dtype, width, data))
        steps = wire.decode({key: bytes(value) for key, value in sent.items()})
        assert isinstance(steps, Steps)
        return from_steps(steps, width=width, dtype=torch.float32, device=CPU)


@dataclass(frozen=True, slots=True)
class WireEffect:
    """``row_bytes``: of one position on one hop. ``one_hop``, ``all_hops``: relative error of
    hidden states, of one message and at the end of the route. ``greedy``: share of the positions
    of the text where the likeliest token is float32's; ``answers``: of the answers that have all
    of float32's tokens, and ``tokens``, of their tokens that come before the first other one."""

    dtype: str
    row_bytes: int
    one_hop: float
    all_hops: float
    perplexity: float
    greedy: float
    tokens: float
    answers: float


def held_out(count: int, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Texts that the demo model has not learned from, as token ids: ``count`` at most."""
    documents = without_repeats(library_documents()[0] + reference_documents())
    texts = (
        "\n\n".join(document.paragraphs)
        for index, document in enumerate(documents)
        if is_held_out(index)
    )
    windows = (window for text in texts for window in _windows(encode(text)))
    return [window for window in windows if len(window) > PROMPT][:count]


def _windows(token_ids: list[int]) -> Iterator[list[int]]:
    """Pieces of equal kind: each begins with the tokenizer's mark for a beginning."""
    beginning, rest = token_ids[:1], token_ids[1:]
    for begin in range(0, len(rest), WINDOW - 1):
        yield beginning + rest[begin : begin + WINDOW - 1]


@dataclass(frozen=True, slots=True)
class _RouteOutputs:
    """Outputs for all texts: final hidden states and likeliest tokens by text, what the next tokens
    cost (nats, summed), and the answers."""

    hidden: list[torch.Tensor]
    likeliest: list[torch.Tensor]
    loss: float
    answers: list[list[int]]


def _run_texts(route: WireRoute, head: SpanModel, texts: Sequence[Sequence[int]]) -> _RouteOutputs:
    found = _RouteOutputs([], [], 0.0, [])
    loss = 0.0
    for text in texts:
        with route:
            hidden = route.hidden(text[:-1])
        logits = head.logits(hidden)
        loss += cross_entropy(logits, torch.tensor(text[1:]), reduction="sum").item()
        found.hidden.append(hidden)
        found.likeliest.append(logits.argmax(-1))
        with route:
            found.answers.append(_answer(route, head, text[:PROMPT]))
    return _RouteOutputs(found.hidden, found.likeliest, loss, found.answers)


def _answer(route: WireRoute, head: SpanModel, prompt: Sequence[int]) -> list[int]:
    """Token ids of a greedy answer of :data:`NEW_TOKENS` tokens."""
    answer: list[int] = []
    given = list(prompt)
    while len(answer) < NEW_TOKENS:
        given = [int(head.logits(route.hidden(given)[-1:]).argmax())]
        answer += given
    return answer


def measure(
    texts: Sequence[Sequence[int]],
    spans: Sequence[SpanModel],
    report_progress: Callable[[str], None],
) -> list[WireEffect]:
    """The effect of each dtype of the wire, compared with float32."""
    reference = None
    effects = []
    for dtype in wire.DTYPES:
        report_progress(f"{len(texts)} texts through {len(spans)} spans in {dtype}")
        route = WireRoute(spans, dtype)
        outputs = _run_texts(route, spans[0], texts)
        reference = reference or outputs
        states = torch.cat(reference.hidden)
        equal = torch.cat(outputs.likeliest) == torch.cat(reference.likeliest)
        common = [
            _common(answer, expected)
            for answer, expected in zip(outputs.answers, reference.answers, strict=True)
        ]
        effects.append(
            WireEffect(
                dtype=dtype,
                row_bytes=wire.tensor_bytes(dtype, 1, states.shape[1]),
                one_hop=_error(route.transmit(states), states),
                all_hops=_error(torch.cat(outputs.hidden), states),
                perplexity=math.exp(outputs.loss / len(states)),
                greedy=equal.float().mean().item(),
                tokens=sum(common) / (len(common) * NEW_TOKENS),
                answers=sum(count == NEW_TOKENS for count in common) / len(common),
            )
        )
    return effects


def _common(answer: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = zip(answer, expected, strict=True)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(answer))


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def show(effects: Sequence[WireEffect], texts: Sequence[Sequence[int]]) -> None:
    table = Table(
        title=f"The demo model over {NODES} spans; {len(texts)} texts that it has not learned, "
        f"{sum(map(len, texts))} tokens",
        title_justify="left",
    )
    table.add_column("wire")
    for column in ("bytes", "one hop", "all hops", "perplexity", "", "greedy", "tokens", "answers"):
        table.add_column(column, justify="right", no_wrap=True)
    for effect in effects:
        table.add_row(
            effect.dtype,
            str(effect.row_bytes),
            f"{effect.one_hop:.1e}",
            f"{effect.all_hops:.1e}",
            f"{effect.perplexity:.3f}",
            f"{effect.perplexity / effects[0].perplexity - 1:+.3%}",
            f"{effect.greedy:.2%}",
            f"{effect.tokens:.1%}",
            f"{effect.answers:.0%}",
        )
    console.print(table)
    console.print(
        "Bytes: of a token's hidden state on each hop. One hop, all hops: relative error of hidden "
        "states after one message, and where the head reads them. Perplexity of the texts as they "
        "are; greedy: their positions whose likeliest token is float32's. Answers: "
        f"{NEW_TOKENS} tokens after the first {PROMPT} of each text, all float32's; tokens: "
        "the share of them before the first other one."
    )


def main(
    texts: Annotated[int, typer.Option(min=1, help="Texts at most.")] = 64,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure what `far-node --wire` does to the output of the demo model.

    Three spans of the demo model in this process. Between them, and from the last back to the edge,
    hidden states go through a message and its bytes as nodes send them: as float32, bfloat16,
    float16, or int8 in blocks with a scale each. The spans compute in float32.

    The texts are documents that training held out, in pieces of at most 512 tokens. They are read
    as they are (perplexity, likeliest tokens), and continued greedily from their beginning.
    The corpus ships with Python: with another version of it than the model was trained on, some of
    these texts may not be new to the model. Nothing here depends on how busy the machine is.
    """
    began = time.monotonic()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    with workspace("Loading") as (folder, report_progress):
        spans = _spans(folder)
        read = held_out(texts, lambda text: tokenizer.encode(text).ids)
        effects = measure(read, spans, report_progress)
    show(effects, read)
    measurements = {"nodes": NODES, "effects": [asdict(effect) for effect in effects]}
    write_results(measurements, other_cpu=[], began=began, json_file=json_file)


def _spans(cache: Path) -> list[SpanModel]:
    layers = json.loads((DEMO_MODEL / "config.json").read_text())["num_hidden_layers"]
    spans = []
    for start, end in even_split(layers, NODES):
        folder, spec = prepare_span(
            str(DEMO_MODEL), layers=(start, end), edge=start == 0, cache=cache
        )
        spans.append(SpanModel(folder, edge=spec.edge, device=CPU, dtype=torch.float32))
    return spans


if __name__ == "__main__":
    typer.run(main)
