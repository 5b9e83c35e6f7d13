"""The machine that a benchmark runs on, and the CPU time that other processes used on it."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

PACKAGES = ("torch", "transformers", "redis", "tokenizers")

BUSY = 0.1
"""Cores used by other processes, from which on a warning is printed beside the figures."""


def describe() -> dict[str, str | int]:
    """Hardware, system and versions of libraries: what measured figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def summary() -> str:
    """Hardware, system and versions of libraries, in one line."""
    facts = describe()
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['system']}; "
        f"Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}"
    )


def mesh_summary() -> str:
    """The summary, and how many threads each process of the mesh's benchmarks has."""
    return f"{summary()}; one thread a process"


def other_cpu_summary(shares: Sequence[float]) -> str:
    """A sentence about the cores that other processes used; ``shares`` has a figure for each
    measurement."""
    sentence = (
        f"Processes that are not the benchmark's used {median(shares):.2f} cores meanwhile "
        f"(median; at most {max(shares):.2f})."
    )
    if median(shares) > BUSY:
        return f"[yellow]{sentence} The figures are not worth much: run it on an idle machine.[/]"
    return sentence


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    fields = {name.strip(): value for name, value in fields.items()}
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds by group, and the cores that all other processes of the machine used."""

    seconds: dict[str, float]
    other_cpu: float


class CpuMeter:
    """CPU time since it was made, of named groups of processes, each with those below it; but of
    this process alone."""

    def __init__(self, groups: Mapping[str, Sequence[psutil.Process]]) -> None:
        self._groups = groups
        self._began = time.perf_counter()
        self._busy = _busy()
        self._used = self._by_group()

    def read(self) -> CpuUse:
        used = {name: now - self._used[name] for name, now in self._by_group().items()}
        other_cpu = _busy() - self._busy - sum(used.values())
        return CpuUse(used, max(0.0, other_cpu) / (time.perf_counter() - self._began))

    def _by_group(self) -> dict[str, float]:
        return {
            name: sum(
                _cpu_seconds(process) if process.pid == os.getpid() else tree_seconds(process)
                for process in processes
            )
            for name, processes in self._groups.items()
        }


class OtherCpuMeter:
    """How many cores the processes used that are not the benchmark's, since this was made.

    The benchmark's are this one and all that it started, and those below ``roots`` (a server that
    went into the background). Read it before a root ends: its time goes with it.
    """

    def __init__(self, *roots: psutil.Process) -> None:
        self._roots = (psutil.Process(), *roots)
        self._began = time.perf_counter()
        self._began_with = self._other_cpu()

    def read(self) -> float:
        return max(0.0, self._other_cpu() - self._began_with) / (time.perf_counter() - self._began)

    def _other_cpu(self) -> float:
        return _busy() - sum(tree_seconds(root) for root in self._roots)


def tree_seconds(root: psutil.Process) -> float:
    """CPU time of a process, of those below it, and of those that have ended there."""
    return sum(_cpu_seconds(process) for process in (root, *root.children(recursive=True)))


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process, and of its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # its time is its parent's by now
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
