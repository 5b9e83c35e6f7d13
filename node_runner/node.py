"""A node's life: load the span, register, pull work until told to drain."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from prometheus_client import start_http_server

from mesh import wire
from mesh.errors import MeshError
from mesh.footprint import QUANTIZATIONS
from node_runner import devices, metrics
from node_runner.control import Control
from node_runner.engine.cuda import accelerate, capture_decoding
from node_runner.engine.draft_model import load_draft
from node_runner.engine.engine import Engine
from node_runner.engine.loader import SpanSpec, prepare_span
from node_runner.engine.span import Span
from node_runner.platform import Identity, Platform, PlatformError, Vitals
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport

LOCAL_REDIS = "redis://127.0.0.1:6379/0"

log = structlog.get_logger()


class CannotServe(Exception):
    """The node does not start, or has to end; the message says what to change."""


class Forgotten(CannotServe):
    """The platform no longer knows the node: starting it again may be all there is to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a node is started with: `far-node start --help` says what each means."""

    model: str
    wallet: str
    discovery: str
    credential: bytes | str = field(repr=False)
    """The wallet's private key, or the token of a machine that it let in."""
    redis: str | None
    path: str | None
    span: tuple[int, int] | None
    edge: bool
    device: str
    dtype: str
    quantization: str
    kv_gb: float
    threads: int
    wire: str
    speculate: bool
    draft: str | None
    paged: bool
    public_addr: str
    location: str
    cache: Path
    metrics_port: int
    max_sessions: int | None = None
    min_price: str | None = None


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    about = {
        "kind": "node",
        "model_id": options.model,
        "device": options.device,
        "wallet_address": options.wallet,
        "discovery": options.discovery,
    }
    # SIGINT reaches the main thread whatever it does: it ends a start, and drains what serves.
    with Control(about, drain=lambda: os.kill(os.getpid(), signal.SIGINT)) as control:
        _serve(options, control)


def _serve(options: Options, control: Control) -> None:
    try:
        device = devices.pick(options.device)
        dtype = devices.pick_dtype(options.dtype, device)
    except ValueError as error:
        raise CannotServe(str(error)) from None
    control.describe = lambda: {"phase": "loading"}
    loaded, spec, guesser = _load(options, device, dtype)
    budget = _kv_budget(options.kv_gb, loaded)
    identity = Identity(
        wallet_address=options.wallet,
        model_id=options.model,
        start_layer=spec.start,
        end_layer=spec.end,
        edge=options.edge,
        gpu_model=devices.name_of(device),
        vram_gb=_vram_gb(device),
        public_addr=options.public_addr,
        location=options.location,
        max_sessions=options.max_sessions,
        min_price=options.min_price,
    )
    platform = Platform(options.discovery, identity, options.credential)
    control.describe = lambda: {"phase": "registering"}
    try:
        node_id = platform.join()
    except PlatformError as error:
        raise CannotServe(f"The platform did not register this node: {error}") from None
    _serve_metrics(options.metrics_port)
    meter = metrics.Meter()
    engine = Engine(
        loaded,
        node_id=node_id,
        kv_budget_bytes=budget,
        wire_dtype=_wire_dtype(options.wire),
        speculate=options.speculate,
        draft=guesser,
        max_generations=options.max_sessions,
    )
    if loaded.kv_shape.paged:
        capture_decoding(loaded, engine.pool)
    try:
        transport = RedisTransport(options.redis or LOCAL_REDIS, node_id, engine.room)
    except Unreachable as error:
        raise CannotServe(f"{error} Is --redis right?") from None
    runner = Runner(engine, transport, meter)

    def drain(*_: object) -> None:
        runner.drain()
        threading.Thread(target=platform.leave).start()  # HTTP has no place in a handler

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, drain)
    forgotten = threading.Event()

    def start_over() -> None:
        forgotten.set()
        runner.drain()

    beats = _Beats(
        lambda: Vitals(*meter.read(), runner.generations, engine.capacity()),
    )
    platform.start_heartbeats(beats, start_over)

    def describe() -> dict[str, Any]:
        return {
            "phase": "draining" if runner.draining else "serving",
            "node_id": node_id,
            "layers": [spec.start, spec.end],
            "edge": options.edge,
            "device": str(device),
            "gpu_model": devices.name_of(device),
            "sessions": runner.generations,
            "max_sessions": options.max_sessions,
            "tokens_per_second": beats.last.throughput_tokens_per_sec,
            "step_ms": beats.last.latency_ms,
            "platform": platform.describe(),
        }

    control.describe = describe
    log.info(
        "node_started",
        node_id=node_id,
        model_id=options.model,
        layers=[spec.start, spec.end],
        edge=options.edge,
        device=str(device),
        quantization=options.quantization,
        weight_bytes=sum(weight.nbytes for weight in loaded.weights),
    )
    runner.run()
    platform.close()
    if forgotten.is_set():
        raise Forgotten(
            "The platform does not know this node any more. Start it again to register."
        )


class _Beats:
    """Vitals for the heartbeats; remembers the last, for whoever asks between two."""

    def __init__(self, read: Callable[[], Vitals]) -> None:
        self._read = read
        self.last = Vitals(0, 0, 0, 0)

    def __call__(self) -> Vitals:
        self.last = self._read()
        return self.last


def _serve_metrics(port: int) -> None:
    if not port:
        return
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise CannotServe(
            f"Cannot serve metrics on port {port}: {error.strerror}. Choose another "
            "--metrics-port, or 0 for none."
        ) from None


def _load(
    options: Options, device: torch.device, dtype: torch.dtype
) -> tuple[Span, SpanSpec, Span | None]:
    """The span, what it holds, and the model that guesses for the edge."""
    if options.quantization not in QUANTIZATIONS:
        raise CannotServe(
            f"--quantization is one of {', '.join(QUANTIZATIONS)}; got {options.quantization!r}."
        )
    torch.set_num_threads(options.threads)
    try:
        folder, spec = prepare_span(
            options.path or options.model,
            layers=options.span,
            edge=options.edge,
            cache=options.cache,
        )
        loaded = Span(
            folder,
            edge=options.edge,
            device=device,
            dtype=dtype,
            quantization=options.quantization,
        )
        loaded.warm_up()
        guesser = _guesser(options, loaded) if options.speculate else None
        if options.paged and device.type == "cuda":
            accelerate(loaded)
            if guesser is not None:
                accelerate(guesser)
    except MeshError as error:
        raise CannotServe(error.detail) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CannotServe(
                f"The disk is full: the span does not fit under {options.cache}. Make room, or "
                "choose another --cache."
            ) from None
        raise CannotServe(
            f"Cannot read the model {options.path or options.model}: {error}"
        ) from None
    return loaded, spec, guesser


def _guesser(options: Options, loaded: Span) -> Span | None:
    if options.draft is None:
        return None
    if not loaded.edge:
        raise CannotServe("--draft goes with --edge: only the edge has tokens to guess.")
    return load_draft(options.draft, loaded, cache=options.cache)


def _kv_budget(gigabytes: float, loaded: Span) -> int:
    least = loaded.kv_shape.bytes_per_block
    if gigabytes * 1e9 < least:
        raise CannotServe(f"--kv-gb {gigabytes:g} holds nothing: a block takes {least / 1e9:g} GB.")
    return round(gigabytes * 1e9)


def _wire_dtype(name: str) -> str | None:
    if name == "auto":
        return None
    if name not in wire.DTYPES:
        raise CannotServe(f"--wire is one of auto, {', '.join(wire.DTYPES)}; got {name!r}.")
    return name


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)
