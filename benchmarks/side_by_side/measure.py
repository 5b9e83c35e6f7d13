"""Measures the mesh and plain transformers on one model, in turns and never at the same time.

The side that goes first changes from round to round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.checkpoints.models import BenchModel
from benchmarks.checkpoints.plain_transformers import Plain
from benchmarks.common.machine import CpuMeter, CpuUse
from benchmarks.common.timing import TokenTiming
from benchmarks.running import network
from benchmarks.running.user import Served, User
from stack.development_stack import DevelopmentStack

NODES = 3
SHORT_PROMPT = 16
LONG_PROMPT = 512
AT_ONCE = 8

PAUSE = 0.3
"""Seconds before each measurement: the mesh still writes down how the last job ended."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often to measure, and how many tokens to generate by one stream and by each of eight."""

    rounds: int
    single: int
    at_once: int


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts that are sent at once, and how many new tokens each of them gets."""

    prompts: Sequence[str]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class SpeedRound:
    """One measurement of both sides. ``equal``: how many of the ``prompts`` both sides continued
    with the same tokens."""

    plain: TokenTiming
    user: TokenTiming
    pipeline: TokenTiming
    plain_cpu: CpuUse
    mesh_cpu: CpuUse
    prompts: int
    equal: int


def cases(model: BenchModel, effort: Effort, number: int) -> dict[str, Case]:
    """What is measured, by name."""
    return {
        "single": Case([model.prompt(SHORT_PROMPT)], effort.single),
        # Another one each round: the mesh computes a prompt that it knows only once.
        "first": Case([model.prompt(LONG_PROMPT, number)], 1),
        "at_once": Case(
            [model.prompt(SHORT_PROMPT, number) for number in range(AT_ONCE)], effort.at_once
        ),
    }


def measure(
    model: BenchModel,
    effort: Effort,
    folder: Path,
    report_progress: Callable[[str], None],
    node_options: tuple[str, ...] = (),
) -> dict[str, list[SpeedRound]]:
    """All rounds of every case. ``folder`` is for the stack's data."""
    plan = network.plan(model, folder, nodes=NODES, node_options=node_options)
    report_progress("starting both sides")
    with DevelopmentStack(plan) as stack, Plain(model.folder) as plain:
        sides = _Sides(model, plain, User(stack), _processes(stack, plain))
        report_progress("warming up")
        rounds: dict[str, list[SpeedRound]] = {}
        for name, case in cases(model, effort, 0).items():
            sides.measure(case, mesh_first=False)
            rounds[name] = []
        for number in range(1, effort.rounds + 1):
            report_progress(f"round {number} of {effort.rounds}")
            for name, case in cases(model, effort, number).items():
                rounds[name].append(sides.measure(case, mesh_first=number % 2 == 0))
        return rounds


@dataclass(frozen=True, slots=True)
class _Sides:
    model: BenchModel
    plain: Plain
    user: User
    processes: Mapping[str, Sequence[psutil.Process]]

    def measure(self, case: Case, *, mesh_first: bool) -> SpeedRound:
        if mesh_first:
            served, mesh_cpu = self._on_mesh(case)
            (timing, token_ids), plain_cpu = self._on_plain(case)
        else:
            (timing, token_ids), plain_cpu = self._on_plain(case)
            served, mesh_cpu = self._on_mesh(case)
        return SpeedRound(
            plain=timing,
            user=served.user,
            pipeline=served.pipeline,
            plain_cpu=plain_cpu,
            mesh_cpu=mesh_cpu,
            prompts=len(case.prompts),
            equal=sum(a == b for a, b in zip(token_ids, served.token_ids, strict=True)),
        )

    def _on_plain(self, case: Case) -> tuple[tuple[TokenTiming, list[list[int]]], CpuUse]:
        prompts = [self.model.tokenizer.encode(prompt).ids for prompt in case.prompts]
        time.sleep(PAUSE)
        meter = CpuMeter(self.processes)
        return self.plain.generate(prompts, case.new_tokens), meter.read()

    def _on_mesh(self, case: Case) -> tuple[Served, CpuUse]:
        time.sleep(PAUSE)
        meter = CpuMeter(self.processes)
        return self.user.generate(case.prompts, case.new_tokens), meter.read()


def _processes(stack: DevelopmentStack, plain: Plain) -> dict[str, list[psutil.Process]]:
    """Everything that the benchmark runs, by the part that it plays."""
    groups = {
        name: [psutil.Process(child.process.pid)]
        for name, child in stack.processes.children.items()
    }
    groups["postgres"] = [network.postmaster(stack)]
    groups["client"] = [psutil.Process()]
    groups["plain"] = [psutil.Process(plain.pid)]
    return groups
