"""A node's life: load the span, register, pull work until told to drain."""

import json
import signal
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import torch
from eth_account import Account
from prometheus_client import start_http_server

from mesh import wire
from mesh.errors import MeshError
from mesh.footprint import QUANTIZATIONS
from node_runner import metrics
from node_runner.engine.cuda import accelerate, capture_decoding
from node_runner.engine.draft_model import load_draft
from node_runner.engine.engine import Engine
from node_runner.engine.loader import SpanSpec, prepare_span
from node_runner.engine.span import Span
from node_runner.engine.tensors import DTYPES
from node_runner.platform import Identity, Platform, PlatformError, Vitals
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport
from node_runner.weights.asking import AskPlatform, Wallet
from node_runner.weights.where import weights_of

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
    redis: str
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
    cache_gb: float | None
    verify: bool
    metrics_port: int


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    private_key = _unlock(options)
    device = _device(options.device)
    loaded, spec, guesser = _load(options, device, private_key)
    budget = _kv_budget(options.kv_gb, loaded)
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
    try:
        transport = RedisTransport(options.redis, node_id, engine.room)
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

    platform.start_heartbeats(
        lambda: Vitals(*meter.read(), runner.generations, engine.capacity()), start_over
    )
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
        raise CannotServe(
            "The platform does not know this node any more. Start it again to register."
        )


def _load(
    options: Options, device: torch.device, private_key: bytes
) -> tuple[Span, SpanSpec, Span | None]:
    """The span, what it holds, and the model that guesses for the edge."""
    if options.quantization not in QUANTIZATIONS:
        raise CannotServe(
            f"--quantization is one of {', '.join(QUANTIZATIONS)}; got {options.quantization!r}."
        )
    torch.set_num_threads(options.threads)
    wallet = Wallet(options.wallet, private_key)
    ask = AskPlatform(options.discovery, options.model, wallet=wallet)
    try:
        folder, spec = prepare_span(
            options.path or options.model,
            layers=options.span,
            edge=options.edge,
            cache=options.cache,
            cache_bytes=_cache_bytes(options),
            verify=options.verify,
            opened=partial(weights_of, options.path, ask),
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
    return load_draft(options.draft, loaded, cache=options.cache, cache_bytes=_cache_bytes(options))


def _cache_bytes(options: Options) -> int | None:
    return None if options.cache_gb is None else round(options.cache_gb * 1e9)


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
