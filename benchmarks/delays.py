"""Speculative decoding over slow links: `python -m benchmarks.delays --help`."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network, node_metrics
from benchmarks.running.proxy import SlowLink
from benchmarks.running.user import GREEDY, User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 3
PASSAGE = 200
BEGINNING = 20
"""Tokens of a passage, and of its beginning, with which the answer shall go on."""

PROMPT = 60
"""Tokens of an ordinary prompt."""

SIDES = {"off": "--no-speculate", "on": "--speculate"}


@dataclass(frozen=True, slots=True)
class TextKind:
    """A kind of text: a prompt by number, and how the tokens are chosen. ``goal``: how many times
    as fast speculative decoding should be, if there is a goal."""

    title: str
    model: str
    prompt: Callable[[BenchModel, int], str]
    sampling: Mapping[str, Any]
    goal: float | None


def _repeated_beginning(model: BenchModel, number: int) -> str:
    """A passage, and its beginning again."""
    return f"{model.prompt(PASSAGE, number)}\n\n{model.prompt(BEGINNING, number)}"


def _ordinary(model: BenchModel, number: int) -> str:
    return model.prompt(PROMPT, number)


SAMPLED = {"temperature": 1.0, "top_p": 1.0}

TEXTS = {
    "repeating": TextKind("repeats its prompt", "copier", _repeated_beginning, GREEDY, 1.8),
    "ordinary": TextKind("ordinary, greedy", "S", _ordinary, GREEDY, None),
    "sampled": TextKind("ordinary, temperature 1", "S", _ordinary, SAMPLED, 0.95),
}


@dataclass(frozen=True, slots=True)
class GenerationSpeed:
    """One generation: tokens a second after the first, draft tokens, and those of them that were
    accepted."""

    rate: float
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class DraftingRound:
    """One prompt, served without and with draft tokens. ``copied``: share of the new tokens that
    continue the last three as they were continued before, in prompt or answer."""

    off: GenerationSpeed
    on: GenerationSpeed
    equal: bool
    copied: float

    @property
    def gain(self) -> float:
        return self.on.rate / self.off.rate


@dataclass(slots=True)
class DraftingResults:
    """Rounds by text, and the cores that other processes used in each."""

    rounds: dict[str, list[DraftingRound]] = field(default_factory=dict)
    other_cpu: list[float] = field(default_factory=list)


class DelayedMesh:
    """A mesh behind a slow link: nodes, workers and API reach Redis through it."""

    def __init__(self, stack: DevelopmentStack, model: BenchModel) -> None:
        self._stack = stack
        self._model = model
        self._user = User(stack)

    def generate(
        self, prompt: str, new_tokens: int, sampling: Mapping[str, Any]
    ) -> tuple[GenerationSpeed, list[int]]:
        before = node_metrics.read(self._stack, "node-0")
        served = self._user.generate([prompt], new_tokens, sampling)
        made = node_metrics.read(self._stack, "node-0") - before
        run = GenerationSpeed(served.pipeline.decoding, round(made.drafted), round(made.accepted))
        return run, served.token_ids[0]


def measure(
    model: BenchModel,
    delay: float,
    rounds: int,
    new_tokens: int,
    folder: Path,
    report_progress: Callable[[str], None],
) -> DraftingResults:
    """Rounds of all kinds of text of one model. ``delay``: seconds that a message takes from one
    process to another."""
    texts = {name: text for name, text in TEXTS.items() if text.model == model.name}
    with contextlib.ExitStack() as running:
        sides, stacks = {}, []
        for name, option in SIDES.items():
            report_progress(f"{model.name}: starting the mesh with draft tokens {name}")
            plan = network.plan(model, folder / name, nodes=NODES)
            # A message passes the link twice: from its sender to Redis, and on to its reader.
            link = running.enter_context(SlowLink(plan.redis_port, delay / 2))
            far_redis = f"redis://127.0.0.1:{link.port}/0"
            plan.node_options = ("--redis", far_redis, option)
            plan.environment["FAR_REDIS_URL"] = far_redis
            stacks.append(running.enter_context(DevelopmentStack(plan)))
            sides[name] = DelayedMesh(stacks[-1], model)
        for side in sides.values():
            report_progress(f"{model.name}: warming up")
            side.generate(model.prompt(PROMPT), 4, GREEDY)
        results = DraftingResults({name: [] for name in texts})
        for number in range(1, rounds + 1):
            for name, text in texts.items():
                report_progress(f"{model.name}: round {number} of {rounds}: {text.title}")
                meter = OtherCpuMeter(*map(network.postmaster, stacks))
                order = [*SIDES] if number % 2 else [*reversed(SIDES)]
                one = _measure_round(
                    model, text, number, new_tokens, {key: sides[key] for key in order}
                )
                results.rounds[name].append(one)
                results.other_cpu.append(meter.read())
        return results


def _measure_round(
    model: BenchModel,
    text: TextKind,
    number: int,
    new_tokens: int,
    sides: Mapping[str, DelayedMesh],
) -> DraftingRound:
    prompt = text.prompt(model, number)
    sampling = {**text.sampling, "seed": number}
    runs = {name: side.generate(prompt, new_tokens, sampling) for name, side in sides.items()}
    (off, off_ids), (on, on_ids) = runs["off"], runs["on"]
    prompt_ids = model.tokenizer.encode(prompt).ids
    return DraftingRound(off, on, off_ids == on_ids, _copied(prompt_ids, off_ids))


def _copied(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of the answer's tokens that stood after the same three tokens before."""
    tokens = [*prompt, *answer]
    follows: dict[tuple[int, ...], int] = {}
    copied = 0
    for at in range(3, len(tokens)):
        before = tuple(tokens[at - 3 : at])
        copied += at >= len(prompt) and follows.get(before) == tokens[at]
        follows[before] = tokens[at]
    return copied / len(answer)


def show(results: DraftingResults, titles: Sequence[str], delay_ms: float, new_tokens: int) -> None:
    count = len(results.rounds["repeating"])
    table = Table(
        title=f"{NODES} nodes, {delay_ms:g} ms from node to node, one stream of {new_tokens} "
        f"tokens; tokens/s, medians of {count}",
        title_justify="left",
    )
    table.add_column("text", no_wrap=True)
    for column in ("off", "on", "on / off", "goal", "accepted", "copied", "same"):
        table.add_column(column, justify="right")
    for name, rounds in results.rounds.items():
        text = TEXTS[name]
        drafted = sum(one.on.drafted for one in rounds)
        accepted = sum(one.on.accepted for one in rounds)
        table.add_row(
            text.title,
            f"{median(one.off.rate for one in rounds):.1f}",
            f"{median(one.on.rate for one in rounds):.1f}",
            spread([one.gain for one in rounds], 2, bold=True),
            "" if text.goal is None else f"≥ {text.goal}",
            f"{accepted} of {drafted}",
            f"{median(one.copied for one in rounds):.0%}",
            f"{sum(one.equal for one in rounds)} of {count}",
        )
    console.print(table)
    console.print(
        "On / off: median of the rounds' ratios, lowest and highest. Accepted: of the draft "
        "tokens. Copied: new tokens that follow the last three as they did before. Same: answers "
        "with equal tokens on both sides."
    )
    for title in titles:
        console.print(title + ".")


def main(
    delay_ms: Annotated[
        float, typer.Option(min=0, help="From one process to another, by way of Redis.")
    ] = 50.0,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts of each kind of text.")] = 5,
    tokens: Annotated[int, typer.Option(min=8, help="New tokens of each generation.")] = 96,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure what speculative decoding gains where nodes are far from each other.

    Two meshes of three nodes serve one model, one with `far-node --speculate`, one with
    `--no-speculate`. They take turns with the same prompts, one stream at a time; every round has
    other prompts.

    The delay is made by a small TCP proxy of this benchmark, before Redis: nodes, worker and API
    reach Redis only through it, and it hands all bytes on half the delay later, in both
    directions. So a message from one node to the next takes the delay, and a token of three nodes
    three times that, plus the computing.

    Three kinds of text. One repeats its prompt: a passage and then its beginning once more, with a
    model whose weights are set by hand to go on as the passage did (the demo model is too small to
    have learned that; the copier has its shape). One is an ordinary prompt, continued greedily by
    the demo model. One is an ordinary prompt continued with tokens drawn at temperature 1, which
    seldom repeat; the goal there is that draft tokens cost nothing. How much of each answer was
    copied is measured, too.
    """
    began = time.monotonic()
    results, titles = DraftingResults(), []
    with workspace() as (folder, report_progress):
        for name in dict.fromkeys(text.model for text in TEXTS.values()):
            place = folder / name
            model = models.make(name, DEMO_MODEL, place / "model")
            titles.append(f"{name}: {model.title}")
            found = measure(model, delay_ms / 1000, rounds, tokens, place, report_progress)
            results.rounds |= found.rounds
            results.other_cpu += found.other_cpu
    show(results, titles, delay_ms, tokens)
    measurements = {
        "models": titles,
        "nodes": NODES,
        "delay_ms": delay_ms,
        "tokens": tokens,
        "texts": {
            name: {
                "title": TEXTS[name].title,
                "rounds": [asdict(one) for one in rounds],
            }
            for name, rounds in results.rounds.items()
        },
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
