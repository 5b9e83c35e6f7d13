"""A node's life: register, load the span, pull work until told to drain."""

import json
import signal
import threading
from collections.abc import Callable

import structlog
import torch
from eth_account import Account
from prometheus_client import start_http_server

from mesh.dht.keys import SigningKey
from node_runner import device as devices
from node_runner import metrics
from node_runner.dht.announcer import Announcer, Subject
from node_runner.dht.finding import PlatformNotFound, place_of, platform_url
from node_runner.dht.helper import Place
from node_runner.engines import Engines
from node_runner.loading import Loaded, Loader, Prepared
from node_runner.moving import Mover
from node_runner.options import CannotServe, Options
from node_runner.platform import Identity, NodeSuperseded, Platform, PlatformError, Told
from node_runner.runner import Runner
from node_runner.transport import Unreachable
from node_runner.transport.redis import RedisTransport
from node_runner.transport.relay import RelayTransport
from node_runner.vitals import Gpu, Vitals, room_bytes

__all__ = ["CannotServe", "Options", "serve"]

GPU_SHARE, CPU_SHARE = 0.9, 0.5
"""Of a device's free memory, what a node takes if nobody says: a GPU's but for what torch needs,
and half of a machine's, which has more to do."""

log = structlog.get_logger()


def serve(options: Options) -> None:
    """Run a node until SIGTERM or Ctrl-C has drained it.

    Raises:
        CannotServe: an option is wrong, the platform refuses the node, or has forgotten it.
    """
    private_key = _unlock(options)
    url, place = _platform(options)
    device = _device(options.device)
    loader = Loader(options, device)
    memory_bytes = _memory_bytes(options, device)
    claimed = _claim(options.wallet, device)
    identity = _identity(options, device, claimed, memory_bytes)
    dht_key = SigningKey.new()
    platform = Platform(url, identity, private_key, dht_key.public.hex())
    node_id, prepared, loaded = _join(options, platform, loader)
    if options.metrics_port:
        start_http_server(options.metrics_port, addr="127.0.0.1")
    meter = metrics.Meter()
    engines = Engines(node_id, loaded.layers, loader.engine(loaded, node_id))
    transport = _transport(options.redis, url, platform, engines.room)
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

    gpu = Gpu(device)
    announcer = _announcer(options, platform, dht_key, place)

    def vitals() -> Vitals:
        latency_ms, rate = meter.read()
        use = gpu.use()
        found = Vitals(
            is_healthy=engines.serves_routes,
            latency_ms=latency_ms,
            throughput_tokens_per_sec=rate,
            current_requests=engines.generations,
            kv_positions=engines.capacity(),
            hop_ms=transport.hop_ms,
            load_bytes_per_second=mover.load_bytes_per_second,
            gpu_utilization_percent=use.utilization_percent,
            vram_used_gb=use.vram_used_gb,
            serves=engines.spans,
            cannot_serve=mover.cannot_serve,
        )
        if announcer is not None:
            announcer.vitals = found
        return found

    def told(answer: Told) -> None:
        if answer.span is None:
            return
        mover.told(answer.span, should_rebalance=answer.should_rebalance)
        if announcer is not None and not answer.should_rebalance:
            announcer.layers = answer.span

    def forgotten(error: PlatformError) -> None:
        if isinstance(error, NodeSuperseded):
            end(
                f"{error} If that was a copy of this machine's disk, delete device_id in "
                f"{devices.state_folder()} on one of them."
            )
        else:
            end("The platform does not know this node any more. Start it again to register.")

    platform.start_heartbeats(vitals, told, forgotten)
    if announcer is not None:
        announcer.start()
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
    if announcer is not None:
        announcer.close()
    platform.close()
    gpu.close()
    claimed.release()
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


def _platform(options: Options) -> tuple[str, Place | None]:
    """The platform's URL, and where the DHT is by the node's own options."""
    try:
        place = place_of(options.dht_peers, options.operator_key)
        return platform_url(options.discovery, place), place
    except PlatformNotFound as error:
        raise CannotServe(str(error)) from None


def _announcer(
    options: Options,
    platform: Platform,
    key: SigningKey,
    place: Place | None,
) -> Announcer | None:
    """None where the platform has no DHT, or its key is not the one that this node was told."""
    access = platform.dht
    if access is None or not options.announce:
        return None
    told, pinned = access["operator_key"], options.operator_key
    if pinned is not None and pinned.strip().lower() != told:
        log.error("operator_key_differs", pinned=pinned, told=told)
        return None
    peers = tuple(dict.fromkeys((*(place.peers if place else ()), *access["peers"])))
    if not peers:
        return None
    subject = Subject(
        platform.node_id, access["registration"], options.model, key, access["credential"]
    )
    return Announcer(Place(peers, told), subject, platform.span)


def _transport(
    redis: str | None, url: str, platform: Platform, room: Callable[[], int]
) -> RedisTransport | RelayTransport:
    """Redis where the options name one, else the platform's relay."""
    try:
        if redis:
            return RedisTransport(redis, platform.node_id, room)
        return RelayTransport(url, platform.token, room)
    except Unreachable as error:
        raise CannotServe(f"{error} Is {'--redis' if redis else '--discovery'} right?") from None


def _identity(
    options: Options, device: torch.device, claimed: devices.Device, memory_bytes: int
) -> Identity:
    return Identity(
        wallet_address=options.wallet,
        model_id=options.model,
        span=options.span,
        edge=options.edge,
        gpu_model=_device_name(device),
        vram_gb=_vram_gb(device),
        public_addr=options.public_addr,
        location=options.location,
        device_id=claimed.device_id,
        gpu_index=claimed.gpu_index,
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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)


def _memory_bytes(options: Options, device: torch.device) -> int:
    if options.memory_gb is not None:
        return round(options.memory_gb * 1e9)
    share = GPU_SHARE if device.type == "cuda" else CPU_SHARE
    return round(room_bytes(device) * share)
