"""A node's life: load the span, register, pull work until told to drain."""

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from eth_account import Account
from prometheus_client import start_http_server

from mesh import wire
from mesh.errors import MeshError
from mesh.footprint import QUANTIZATIONS
from node_runner import device as devices
from node_runner import metrics
from node_runner.engine.cuda import accelerate, capture_decoding
from node_runner.engine.draft_model import load_draft
from node_runner.engine.engine import Engine
from node_runner.engine.loader import SpanSpec, prepare_span
from node_runner.engine.span import Span
from node_runner.engine.tensors import DTYPES
from node_runner.platform import Identity, NodeSuperseded, Platform, PlatformError
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport
from node_runner.transport.relay import RelayTransport
from node_runner.vitals import Gpu, LoadTimer, Vitals, room_bytes

log = structlog.get_logger()


class CannotServe(Exception):
    """The node does not start, or has to end; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a node is started with: `far-node start --help` says what each means."""

    model: str
    wallet: str
    discovery: str
    keyfile: Path
    password: str
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


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    private_key = _unlock(options)
    device = _device(options.device)
    room = room_bytes(device)
    timer = LoadTimer()
    loaded, spec, guesser = _load(options, device)
    load_speed = timer.speed(sum(weight.nbytes for weight in loaded.weights))
    budget = _kv_budget(options.kv_gb, loaded)
    claimed = _claim(options.wallet, device)
    identity = Identity(
        wallet_address=options.wallet,
        model_id=options.model,
        start_layer=spec.start,
        end_layer=spec.end,
        edge=options.edge,
        gpu_model=_device_name(device),
        vram_gb=_vram_gb(device),
        public_addr=options.public_addr,
        location=options.location,
        device_id=claimed.device_id,
        gpu_index=claimed.gpu_index,
        quantization=options.quantization,
        memory_bytes=room,
    )
    platform = Platform(options.discovery, identity, private_key)
    try:
        node_id = platform.join()
    except PlatformError as error:
        raise CannotServe(f"The platform did not register this node: {error}") from None
    if options.metrics_port:
        start_http_server(options.metrics_port, addr="127.0.0.1")
    meter = metrics.Meter()
    engine = Engine(
        loaded,
        node_id=node_id,
        kv_budget_bytes=budget,
        wire_dtype=_wire_dtype(options.wire),
        speculate=options.speculate,
        draft=guesser,
    )
    if loaded.kv_shape.paged:
        capture_decoding(loaded, engine.pool)
    transport = _transport(options, node_id, platform.token, engine.room)
    runner = Runner(engine, transport, meter)

    def drain(*_: object) -> None:
        runner.drain()
        threading.Thread(target=platform.leave).start()  # HTTP has no place in a handler

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, drain)
    forgotten: list[PlatformError] = []
    gpu = Gpu(device)

    def start_over(reason: PlatformError) -> None:
        forgotten.append(reason)
        runner.drain()

    def vitals() -> Vitals:
        latency_ms, rate = meter.read()
        use = gpu.use()
        return Vitals(
            latency_ms=latency_ms,
            throughput_tokens_per_sec=rate,
            current_requests=runner.generations,
            kv_positions=engine.capacity(),
            hop_ms=platform.round_trip_ms,
            load_bytes_per_second=load_speed,
            gpu_utilization_percent=use.utilization_percent,
            vram_used_gb=use.vram_used_gb,
        )

    platform.start_heartbeats(vitals, start_over)
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
    gpu.close()
    claimed.release()
    if forgotten and isinstance(forgotten[0], NodeSuperseded):
        raise CannotServe(
            f"{forgotten[0]} If that was a copy of this machine's disk, delete device_id in "
            f"{devices.state_folder()} on one of them."
        )
    if forgotten:
        raise CannotServe(
            "The platform does not know this node any more. Start it again to register."
        )


def _transport(
    options: Options, node_id: str, token: str, room: Callable[[], int]
) -> RedisTransport | RelayTransport:
    """Redis where the options name one, else the platform's relay."""
    try:
        if options.redis:
            return RedisTransport(options.redis, node_id, room)
        return RelayTransport(options.discovery, token, room)
    except Unreachable as error:
        hint = "Is --redis right?" if options.redis else "Is --discovery right?"
        raise CannotServe(f"{error} {hint}") from None


def _load(options: Options, device: torch.device) -> tuple[Span, SpanSpec, Span | None]:
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
            dtype=_dtype(options.dtype, device),
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
    return loaded, spec, guesser


def _unlock(options: Options) -> bytes:
    keyfile, wallet = options.keyfile, options.wallet
    try:
        key = Account.decrypt(json.loads(keyfile.read_text()), options.password)
    except OSError as error:
        raise CannotServe(f"Cannot read the keystore {keyfile}: {error.strerror}.") from None
    except ValueError as error:
        raise CannotServe(
            f"Cannot unlock {keyfile} ({error}). Is FAR_NODE_PASSWORD its password?"
        ) from None
    address = Account.from_key(key).address
    if address.lower() != wallet.lower():
        raise CannotServe(f"{keyfile} belongs to {address}, not to --wallet {wallet}.")
    return bytes(key)


def _claim(wallet: str, device: torch.device) -> devices.Device:
    try:
        return devices.claim(devices.state_folder(), wallet=wallet, gpu_index=device.index or 0)
    except devices.DeviceError as error:
        raise CannotServe(str(error)) from None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CannotServe("torch finds no GPU here. Use --device cpu, or install a CUDA build.")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise CannotServe(f"--dtype is one of auto, {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)
