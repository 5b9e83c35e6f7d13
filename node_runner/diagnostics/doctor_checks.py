"""What would keep this machine from earning: each check finds a state, and says what to do."""

import datetime as dt
import platform as system
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import httpx
import torch

from node_runner.machine import devices
from node_runner.machine.login_file import MachineLogin
from node_runner.machine.main_memory import available_main_memory

State = Literal["ok", "warn", "fail"]

GB = 10**9
LOW_MEMORY = 6 * GB
LOW_DISK, NO_DISK = 50 * GB, 5 * GB

SKEW_WARN, SKEW_FAIL = 5.0, 60.0
"""Seconds. TLS and signed messages live by the clock; the platform's date has no fractions."""

SLOW_ROUND_TRIP = 150.0
"""Milliseconds of a round trip, above which routes prefer other nodes."""

SLOW_LINE = 10.0
"""Mbit/s. A token's hidden state is 16 kB for 8,192 numbers in 16 bits; a prompt's, thousands of
times that."""

ROUND_TRIPS = 5
DOWNLOAD, UPLOAD = 4 * 2**20, 2**19
PROBE_PATH = "/api/discovery/probe"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    found: str
    hint: str = ""


def machine(cache: Path) -> Iterator[Check]:
    """Checks that need no network: GPU, memory, torch, disk."""
    gpus = devices.gpus()
    yield Check("torch", *_torch(bool(gpus)))
    for gpu in gpus:
        state: State = "ok" if gpu.free >= LOW_MEMORY else "warn"
        found = f"{gpu.name}, {gpu.free / GB:.1f} of {gpu.memory / GB:.1f} GB free"
        hint = "" if state == "ok" else "Close what else uses the GPU, or serve few layers."
        yield Check(f"GPU {gpu.index}", state, found, hint)
    if not gpus:
        yield Check(
            "GPU",
            "warn",
            f"none; {available_main_memory() / GB:.1f} GB of main memory available",
            "A CPU serves small models slowly. With a GPU: is its driver installed "
            "(nvidia-smi), and is torch a CUDA build?",
        )
    yield _disk(cache)


def _torch(has_gpu: bool) -> tuple[State, str, str]:
    build = torch.version.cuda or torch.version.hip
    kind = f"CUDA {build}" if build else "CPU only"
    found = f"{torch.__version__}, {kind}, Python {system.python_version()}"
    if has_gpu or build is None:
        return "ok", found, ""
    return (
        "warn",
        found,
        "A CUDA build, but no GPU that it can use: is the driver too old for it (nvidia-smi)?",
    )


def _disk(cache: Path) -> Check:
    folder = cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= LOW_DISK else "warn" if free >= NO_DISK else "fail"
    hint = "" if state == "ok" else "Weights take gigabytes: make room, or choose another --cache."
    return Check("disk", state, f"{free / GB:.0f} GB free for {cache}", hint)


NO_PLATFORM = Check(
    "platform", "fail", "none is known", "far-node login --discovery URL, or give --discovery."
)


def login(saved: MachineLogin | None) -> Check:
    """Whether this machine may register nodes."""
    if saved is None:
        hint = "far-node login --discovery URL; not needed with --keyfile."
        return Check("login", "warn", "this machine is not logged in", hint)
    return Check("login", "ok", f"registers nodes for {saved.wallet_address}")


def network(http: httpx.Client) -> Iterator[Check]:
    """Checks of the platform: whether it answers, how far it is, what the line carries, the
    clock."""
    try:
        trips, skew = _round_trips(http)
    except httpx.HTTPError as error:
        yield Check(
            "platform",
            "fail",
            f"{http.base_url} does not answer ({type(error).__name__})",
            "Is the URL right (--discovery), and this machine online? Does a proxy or firewall "
            "stand between?",
        )
        return
    near: State = "ok" if trips < SLOW_ROUND_TRIP else "warn"
    hint = "" if near == "ok" else "Routes count this: nearer nodes get work first."
    yield Check("platform", near, f"{http.base_url}, {trips:.0f} ms a round trip", hint)
    yield _clock(skew)
    yield _bandwidth(http)


def _round_trips(http: httpx.Client) -> tuple[float, float]:
    """Median milliseconds of a round trip, and seconds that our clock is ahead."""
    http.get(PROBE_PATH).raise_for_status()  # opens the connection
    times, skews = [], []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        answer = http.get(PROBE_PATH).raise_for_status()
        took = time.perf_counter() - began
        times.append(1000 * took)
        date = answer.headers.get("date")
        if date is not None:
            # Whole seconds, cut: half a second later on average.
            theirs = parsedate_to_datetime(date) + dt.timedelta(seconds=0.5)
            skews.append((dt.datetime.now(dt.UTC) - theirs).total_seconds() - took / 2)
    return statistics.median(times), statistics.median(skews) if skews else 0.0


def _clock(skew: float) -> Check:
    size = abs(skew)
    state: State = "ok" if size < SKEW_WARN else "warn" if size < SKEW_FAIL else "fail"
    if state == "ok":
        return Check("clock", state, "agrees with the platform's to about a second")
    way = "ahead of" if skew > 0 else "behind"
    return Check(
        "clock",
        state,
        f"{size:.0f} s {way} the platform's",
        "Switch time synchronisation on: timedatectl set-ntp true.",
    )


def _bandwidth(http: httpx.Client) -> Check:
    try:
        down = _mbits(http, "GET", DOWNLOAD)
        up = _mbits(http, "POST", UPLOAD)
    except httpx.HTTPError as error:
        return Check("bandwidth", "warn", f"not measured ({type(error).__name__})", "Try later.")
    state: State = "ok" if min(down, up) >= SLOW_LINE else "warn"
    hint = "" if state == "ok" else "Prompts take long through this node: --wire int8 halves that."
    return Check("bandwidth", state, f"{down:.0f} Mbit/s down, {up:.0f} Mbit/s up", hint)


def _mbits(http: httpx.Client, method: str, size: int) -> float:
    began = time.perf_counter()
    if method == "GET":
        answer = http.get(PROBE_PATH, params={"bytes": size})
    else:
        answer = http.post(PROBE_PATH, content=bytes(size))
    answer.raise_for_status()
    return 8 * size / 1e6 / (time.perf_counter() - began)
