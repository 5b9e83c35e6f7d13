"""What a request's sampling parameters cost: `python -m benchmarks.sampling --help`."""

import time
from dataclasses import replace
from functools import partial

import torch
import typer
from rich.console import Console
from rich.table import Table

from mesh.model.generation_config import GenerationConfig
from mesh.wire import SamplingParams
from node_runner.engine.decoding.logits_processor import Continuation, LogitsProcessor
from node_runner.engine.decoding.logprobs import packed_logprobs
from node_runner.engine.decoding.sampler import sample

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, seed=0, stop=[])
DRAWN = replace(GREEDY, temperature=0.8, top_p=0.95)
ASKED = {
    "greedy": GREEDY,
    "greedy, penalties": replace(GREEDY, repetition_penalty=1.1, frequency_penalty=0.5),
    "greedy, 300 biases": replace(GREEDY, logit_bias=dict.fromkeys(range(300), 1.0)),
    "greedy, 20 logprobs": replace(GREEDY, logprobs=20),
    "drawn": DRAWN,
    "drawn, top-k": replace(DRAWN, top_k=50),
    "drawn, min-p": replace(DRAWN, min_p=0.05),
    "drawn, penalties": replace(DRAWN, repetition_penalty=1.1, frequency_penalty=0.5),
}
PROMPT, GENERATED = 200, 200


def main(
    rows: int = typer.Option(8, min=1, help="Generations that are sampled together."),
    vocabulary: int = typer.Option(32_000, min=1000, help="Tokens of the vocabulary."),
    rounds: int = typer.Option(9, min=1, help="The quickest of so many counts."),
    device: str = typer.Option("cpu", help="Of torch."),
) -> None:
    """Microseconds a row, from logits to token ids, by what all rows ask for, with one thread; and
    how many times what the same draw costs without."""
    torch.set_num_threads(1)
    logits = torch.randn(rows, vocabulary, device=device) * 3
    quickest = dict.fromkeys(ASKED, float("inf"))
    for _ in range(rounds):  # in turn, so that what else the machine does disturbs all alike
        for name, params in ASKED.items():
            quickest[name] = min(quickest[name], _microseconds(logits, params))
    table = Table("what is asked for", "a row, µs", "ratio")
    for name, taken in quickest.items():
        plain = quickest[name.partition(",")[0]]
        table.add_row(name, f"{taken / rows:.0f}", f"{taken / plain:.2f}")
    Console().print(table)


@torch.inference_mode()
def _microseconds(logits: torch.Tensor, params: SamplingParams) -> float:
    """Of the second of two steps: the first one looks at the whole text."""
    rows = len(logits)
    processor = LogitsProcessor(GenerationConfig(), device=logits.device)
    tokens = [number % 1000 for number in range(PROMPT + GENERATED)]
    histories = [processor.history(params, PROMPT) for _ in range(rows)]
    for text in (tokens, [*tokens, 7]):
        texts = [Continuation(text, [], PROMPT, 2 * len(text), history) for history in histories]
        began = time.perf_counter()
        process = partial(processor.process, texts=texts)
        chosen = sample(logits, [params] * rows, [len(text)] * rows, process=process)
        packed_logprobs(logits, chosen, [params] * rows)
        taken = time.perf_counter() - began
    return taken * 1e6


if __name__ == "__main__":
    typer.run(main)
