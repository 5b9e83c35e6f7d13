"""A node's life: register, load the span, pull work until told to drain."""

import json
import os
import signal
import threading

import structlog
import torch
from eth_account import Account
from prometheus_client import start_http_server

from node_runner import metrics
from node_runner.engines import Engines
from node_runner.loading import Loaded, Loader, Prepared
from node_runner.moving import Mover
from node_runner.options import CannotServe, Options
from node_runner.platform import Identity, Platform, PlatformError, Told, Vitals
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport

__all__ = ["CannotServe", "Options", "serve"]

GPU_SHARE, CPU_SHARE = 0.9, 0.5
"""Of a device's memory, what a node takes if nobody says: a GPU's but for what torch needs, and
half of a machine's, which has more to do."""

log = structlog.get_logger()


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    private_key = _unlock(options)
    device = _device(options.device)
    loader = Loader(options, device)
    memory_bytes = _memory_bytes(options, device)
    platform = Platform(options.discovery, _identity(options, device, memory_bytes), private_key)
    node_id, prepared, loaded = _join(options, platform, loader)
    if options.metrics_port:
        start_http_server(options.metrics_port, addr="127.0.0.1")
    meter = metrics.Meter()
    engines = Engines(node_id, loaded.layers, loader.engine(loaded, node_id))
    try:
        transport = RedisTransport(options.redis, node_id, engines.room)
    except Unreachable as error:
        raise CannotServe(f"{error} Is --redis right?") from None
    runner = Runner(engines, transport, meter)

    def drain(*_: object) -> None:
        runner.drain()
        threading.Thread(target=platform.leave).start()  # HTTP has no place in a handler

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, drain)
    ended: list[str] = []

    def end(why: str) -> None:
        ended.append(why)
        runner.drain()

    mover = Mover(
        engines,
        loader,
        node_id=node_id,
        loaded=loaded,
        takes=prepared.memory_bytes,
        memory_bytes=memory_bytes,
        news=platform.beat_soon,
        switched=meter.restart,
        lost=lambda: end("Neither the new span nor the old one can be loaded any more."),
    )

    def vitals() -> Vitals:
        return Vitals(
            *meter.read(),
            engines.generations,
            engines.capacity(),
            is_healthy=engines.serves_routes,
            memory_bytes=memory_bytes,
            load_bytes_per_second=mover.load_bytes_per_second,
            serves=engines.spans,
            cannot_serve=mover.cannot_serve,
        )

    def told(answer: Told) -> None:
        if answer.span is not None:
            mover.told(answer.span, should_rebalance=answer.should_rebalance)

    def forgotten() -> None:
        end("The platform does not know this node any more. Start it again to register.")

    platform.start_heartbeats(vitals, told, forgotten)
    log.info(
        "node_started",
        node_id=node_id,
        model_id=options.model,
        layers=loaded.layers,
        placed=options.span is None,
        edge=loaded.spec.edge,
        device=str(device),
        quantization=options.quantization,
        weight_bytes=loaded.weight_bytes,
    )
    runner.run()
    platform.close()
    if ended:
        raise CannotServe(ended[0])


def _join(options: Options, platform: Platform, loader: Loader) -> tuple[str, Prepared, Loaded]:
    """Register, and load. A span that is given is loaded first: what cannot be is not registered.
    Where the platform chooses, it has to be asked."""
    if options.span is not None:
        prepared = loader.prepare(options.span, edge=options.edge)
        loaded = loader.load(prepared)
        return _register(platform), prepared, loaded
    node_id = _register(platform)
    prepared = loader.prepare(platform.span, edge=platform.edge)
    return node_id, prepared, loader.load(prepared)


def _register(platform: Platform) -> str:
    try:
        return platform.join()
    except PlatformError as error:
        raise CannotServe(f"The platform did not register this node: {error}") from None


def _identity(options: Options, device: torch.device, memory_bytes: int) -> Identity:
    return Identity(
        wallet_address=options.wallet,
        model_id=options.model,
        span=options.span,
        edge=options.edge,
        gpu_model=_device_name(device),
        vram_gb=_vram_gb(device),
        public_addr=options.public_addr,
        location=options.location,
        quantization=options.quantization,
        memory_bytes=memory_bytes,
    )


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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)


def _memory_bytes(options: Options, device: torch.device) -> int:
    if options.memory_gb is not None:
        return round(options.memory_gb * 1e9)
    if device.type == "cuda":
        return round(torch.cuda.get_device_properties(device).total_memory * GPU_SHARE)
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_SHARE)
