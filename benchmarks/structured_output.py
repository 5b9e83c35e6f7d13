"""What tokens that a grammar forces gain: `python -m benchmarks.structured_output --help`."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from llguidance import LLTokenizer
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network
from benchmarks.running.proxy import SlowLink
from benchmarks.running.user import ChatServed, User
from market.jobs.structured_output.response_format import response_grammar
from mesh.grammar import compile_grammar
from stack.development_stack import DevelopmentStack

NODES = 3

SIDES = {"off": "--no-speculate", "on": "--speculate"}

SMOLLM2 = Path(__file__).parents[1] / "demo" / "smollm2"

_TEXT = {"type": "string", "maxLength": 40}

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "full_name": _TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "occupation": _TEXT,
        "address": {
            "type": "object",
            "properties": {"street": _TEXT, "city": _TEXT, "country": _TEXT},
            "required": ["street", "city", "country"],
            "additionalProperties": False,
        },
        "employment_status": {"enum": ["employed", "self_employed", "unemployed", "retired"]},
        "years_of_experience": {"type": "integer", "minimum": 0, "maximum": 80},
    },
    "required": [
        "full_name",
        "age",
        "occupation",
        "address",
        "employment_status",
        "years_of_experience",
    ],
    "additionalProperties": False,
}

RESPONSE_FORMAT: Mapping[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
}

TEXTS = (
    "Maria Schmidt, 42, has run her own carpentry at 12 Mill Lane, Bristol, England, for 15 years.",
    "John Okafor is a 35 year old nurse. He lives in 7 Palm Street, Lagos, Nigeria, and has worked "
    "in the city's hospital for 11 years.",
    "After 40 years as a teacher Anna Rossi, now 67, is retired, and lives in Via Roma 3, Turin, "
    "Italy.",
    "Li Wei, an engineer of 29 years with 5 years of experience, lost her job in spring. Her "
    "address is 88 Garden Road, Suzhou, China.",
    "Pedro Alvarez (51) drives a taxi that he owns, since 1999. Calle Luna 5, Seville, Spain.",
)

MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class GenerationSpeed:
    """One answer: its tokens, tokens a second after the first, and draft tokens accepted."""

    tokens: int
    rate: float
    accepted: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Round:
    """One text, served without and with draft tokens. ``forced``: of the answer's tokens, those
    that the grammar leaves no choice of."""

    off: GenerationSpeed
    on: GenerationSpeed
    equal: bool
    forced: int

    @property
    def gain(self) -> float:
        return self.on.rate / self.off.rate


@dataclass(slots=True)
class Results:
    """Rounds by delay in milliseconds, and the cores that other processes used in each."""

    rounds: dict[float, list[Round]] = field(default_factory=dict)
    other_cpu: list[float] = field(default_factory=list)


def measure(
    model: BenchModel,
    delay_ms: float,
    rounds: int,
    folder: Path,
    report_progress: Callable[[str], None],
    results: Results,
) -> None:
    """Rounds over links of one delay."""
    with contextlib.ExitStack() as running:
        users, stacks = {}, []
        for name, option in SIDES.items():
            report_progress(f"{delay_ms:g} ms: starting the mesh with draft tokens {name}")
            plan = network.plan(model, folder / f"{delay_ms:g}-{name}", nodes=NODES)
            # A message passes the link twice: from its sender to Redis, and on to its reader.
            link = running.enter_context(SlowLink(plan.redis_port, delay_ms / 2000))
            far_redis = f"redis://127.0.0.1:{link.port}/0"
            plan.node_options = ("--redis", far_redis, option)
            plan.environment["FAR_REDIS_URL"] = far_redis
            stacks.append(running.enter_context(DevelopmentStack(plan)))
            users[name] = User(stacks[-1])
        for user in users.values():
            report_progress(f"{delay_ms:g} ms: warming up")
            _generate(user, 0)
        results.rounds[delay_ms] = []
        for number in range(rounds):
            report_progress(f"{delay_ms:g} ms: round {number + 1} of {rounds}")
            meter = OtherCpuMeter(*map(network.postmaster, stacks))
            order = [*SIDES] if number % 2 else [*reversed(SIDES)]
            served = {name: _generate(users[name], number) for name in order}
            off, on = served["off"], served["on"]
            equal = off.token_ids == on.token_ids
            forced = _forced(model.tokenizer, on.token_ids)
            one = Round(_speed(off), _speed(on), equal, forced)
            results.rounds[delay_ms].append(one)
            results.other_cpu.append(meter.read())


def _generate(user: User, number: int) -> ChatServed:
    text = TEXTS[number % len(TEXTS)]
    return user.chat(
        {
            "messages": [{"role": "user", "content": f"Write this person as JSON.\n\n{text}"}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "response_format": RESPONSE_FORMAT,
        }
    )


def _speed(served: ChatServed) -> GenerationSpeed:
    tokens = len(served.token_ids)
    rate = (tokens - 1) / (served.last - served.first)
    return GenerationSpeed(tokens, rate, served.accepted, served.rejected)


def _forced(tokenizer: Tokenizer, token_ids: list[int]) -> int:
    """How many tokens of an answer were certain before they came."""
    matcher = compile_grammar(LLTokenizer(tokenizer.to_str()), response_grammar(RESPONSE_FORMAT))
    forced, at = 0, 0
    while at < len(token_ids):
        certain = matcher.compute_ff_tokens()
        forced += len(certain)
        now = certain or [token_ids[at]]
        if not matcher.consume_tokens(now):
            break
        at += len(now)
    return forced


def show(results: Results) -> None:
    table = Table(
        title=f"{NODES} nodes, one answer by a schema at a time; tokens/s, medians",
        title_justify="left",
    )
    table.add_column("from node to node", no_wrap=True)
    for column in ("off", "on", "on / off", "tokens", "forced", "accepted", "same"):
        table.add_column(column, justify="right")
    for delay_ms, rounds in results.rounds.items():
        accepted = sum(one.on.accepted for one in rounds)
        table.add_row(
            f"{delay_ms:g} ms",
            f"{median(one.off.rate for one in rounds):.1f}",
            f"{median(one.on.rate for one in rounds):.1f}",
            spread([one.gain for one in rounds], 2, bold=True),
            f"{median(one.on.tokens for one in rounds):.0f}",
            f"{sum(one.forced for one in rounds) / sum(one.on.tokens for one in rounds):.0%}",
            f"{accepted} of {accepted + sum(one.on.rejected for one in rounds)}",
            f"{sum(one.equal for one in rounds)} of {len(rounds)}",
        )
    console.print(table)
    console.print(
        "On / off: median of the rounds' ratios, lowest and highest. Forced: tokens of the answers "
        "that the schema leaves no choice of. Accepted: of the draft tokens, forced or looked up "
        "in the text. Same: answers with equal tokens on both sides."
    )


def main(
    model: Annotated[
        Path, typer.Option(help="Folder of a checkpoint with a chat template.")
    ] = SMOLLM2,
    delays_ms: Annotated[
        list[float] | None,
        typer.Option("--delay-ms", min=0, help="From one node to another; 0 and 50 by default."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Texts at each delay.")] = len(TEXTS),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how much sooner an answer by a JSON schema comes if tokens that the schema forces are
    verified many at a time.

    Two meshes of three nodes serve one chat model, one with `far-node --speculate`, one with
    `--no-speculate`. They take turns with the same texts, of which each is to become an object by
    a schema, greedily. The delay is made by a small TCP proxy before Redis, as in
    `benchmarks.delays`.

    `python demo/smollm2.py` makes the model.
    """
    if not (model / "config.json").exists():
        raise typer.BadParameter(f"{model} is no checkpoint; python demo/smollm2.py makes one.")
    began = time.monotonic()
    results = Results()
    bench_model = models.checkpoint(model)
    with workspace() as (folder, report_progress):
        for delay_ms in delays_ms or [0.0, 50.0]:
            measure(bench_model, delay_ms, rounds, folder, report_progress, results)
    show(results)
    measurements = {
        "model": bench_model.title,
        "nodes": NODES,
        "delays": {
            f"{delay_ms:g}": [asdict(one) for one in rounds_]
            for delay_ms, rounds_ in results.rounds.items()
        },
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
