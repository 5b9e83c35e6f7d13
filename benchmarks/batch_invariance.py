"""Cost and effect of batch invariance: `python -m benchmarks.batch_invariance --help`.

Both engines, with it and without, generate in turn in each round, and processor time is counted:
so what else the machine does disturbs little.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import models
from mesh.wire import OpenEdge, Prompt, Resume, SamplingParams, StageAssignment, Token
from node_runner.engine.device.tensors import DTYPES
from node_runner.engine.engine import Engine
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel

DEMO = Path("demo/model")
KV_BYTES = 2 * 10**8
PROMPT_TOKENS = 24
COMPARED = 4
"""Texts that are generated alone, too, and compared."""
GREEDY = SamplingParams(temperature=0.0, top_p=1.0, seed=0, stop=[])


def main(
    model: str = typer.Option("S", help="One of S, M, L."),
    tokens: int = typer.Option(100, help="Tokens of each text."),
    rounds: int = typer.Option(5, help="Of which the median of ratios is shown."),
    beside: int = typer.Option(7, help="Other texts at once."),
    threads: int = typer.Option(1, help="CPU threads."),
) -> None:
    """Tokens a second of processor time with batch invariance and without, alone and beside others;
    and how many of the texts differ from those alone."""
    torch.set_num_threads(threads)
    table = Table(
        "dtype",
        "texts at once",
        "without, t/s",
        "with, t/s",
        "ratio",
        f"of {COMPARED} differ: without",
    )
    table.add_column("with")
    with tempfile.TemporaryDirectory() as folder:
        made = models.make(model, DEMO, Path(folder) / "model")
        source, _ = prepare_span(
            str(made.folder), layers=None, edge=True, cache=Path(folder) / "spans"
        )
        prompts = [
            made.tokenizer.encode(made.prompt(PROMPT_TOKENS, number)).ids
            for number in range(beside + 1)
        ]
        for dtype in ("bfloat16", "float16"):
            spans = [
                SpanModel(
                    source,
                    edge=True,
                    device=torch.device("cpu"),
                    dtype=DTYPES[dtype],
                    batch_invariant=invariant,
                )
                for invariant in (False, True)
            ]
            for span in spans:
                span.warm_up()
            alone = [
                [_texts(span, [prompt], tokens)[0][0] for prompt in prompts[:COMPARED]]
                for span in spans
            ]
            for batch in [prompts[:1]] if not beside else [prompts[:1], prompts]:
                measured = [[_texts(span, batch, tokens) for span in spans] for _ in range(rounds)]
                rates = [median(pair[side][1] for pair in measured) for side in (0, 1)]
                ratio = median(with_[1] / without[1] for without, with_ in measured)
                differ = [
                    sum(
                        one != other
                        for one, other in zip(measured[0][side][0], alone[side], strict=False)
                    )
                    for side in (0, 1)
                ]
                table.add_row(
                    dtype,
                    str(len(batch)),
                    *(f"{rate:.0f}" for rate in rates),
                    f"{ratio:.2f}",
                    *map(str, differ),
                )
    Console().print(table)


def _texts(span: SpanModel, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float]:
    """The tokens of each text, and tokens of all together a second of processor time."""
    engine = Engine(span, node_id="0", kv_budget_bytes=KV_BYTES)
    messages = [
        OpenEdge(
            str(number),
            1,
            StageAssignment(
                stage=0,
                stages=1,
                edge_node="0",
                previous_node="0",
                next_node="0",
                capacity=len(prompt) + tokens,
                expires_in=3600,
                start_layer=0,
                end_layer=span.layers,
            ),
            Resume(keep=False, replay=False, known=0),
            [],
            Prompt(prompt, [], tokens, GREEDY),
        )
        for number, prompt in enumerate(prompts)
    ]
    began = time.process_time()
    outputs = engine.step(messages)
    while engine.busy:
        outputs += engine.step([])
    seconds = time.process_time() - began
    texts: list[list[int]] = [[] for _ in prompts]
    for output in outputs:
        if isinstance(output, Token):
            texts[int(output.request_id)].append(output.token_id)
    return texts, sum(map(len, texts)) / seconds


if __name__ == "__main__":
    typer.run(main)
