"""A node's parts, made from its options."""

from collections.abc import Callable

import httpx
import structlog
import torch
from prometheus_client import start_http_server

from mesh.dht.signing_keys import SigningKey
from mesh.node_api import NodeRegistration, RegistrationReply
from node_runner.dht.announcer import Announcer, NodeCredential
from node_runner.dht.peer_client import DhtEndpoint
from node_runner.dht.platform_lookup import PlatformNotFound, dht_endpoint, platform_url
from node_runner.machine import device_claim, devices, directories
from node_runner.node.engine_loader import EngineLoader, LoadedSpan, PreparedSpan
from node_runner.node.options import CannotServe, NodeOptions
from node_runner.platform_client import heartbeats
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import client
from node_runner.transport.interface import Transport, TransportUnreachable
from node_runner.transport.redis_transport import RedisTransport
from node_runner.transport.relay_transport import RelayTransport

log = structlog.get_logger()


def load_span(loader: EngineLoader, prepared: PreparedSpan) -> LoadedSpan:
    loaded = loader.load(prepared)
    info = loaded.info
    log.info("span_loaded", layers=info.span, seconds=round(info.seconds, 3))
    return loaded


def pick_device(name: str) -> torch.device:
    try:
        return devices.pick_device(name)
    except ValueError as error:
        raise CannotServe(str(error)) from None


def claim_device(wallet: str, device: torch.device) -> device_claim.DeviceClaim:
    try:
        return device_claim.claim(directories.state(), wallet=wallet, gpu_index=device.index or 0)
    except device_claim.ClaimError as error:
        raise CannotServe(str(error)) from None


def registration_of(
    options: NodeOptions,
    device: torch.device,
    claim: device_claim.DeviceClaim,
    memory_bytes: int,
    dht_key: SigningKey,
) -> NodeRegistration:
    start, end = options.span or (0, None)
    return NodeRegistration(
        wallet_address=options.wallet,
        model_id=options.model,
        start_layer=start,
        end_layer=end,
        edge=options.edge,
        placeable=options.span is None,
        gpu_model=devices.device_name(device),
        vram_gb=_vram_gb(device),
        public_addr=options.public_addr,
        location=options.location,
        device_id=claim.device_id,
        gpu_index=claim.gpu_index,
        quantization=options.quantization,
        memory_bytes=memory_bytes,
        max_sessions=options.max_sessions or 0,
        min_price=options.min_price,
        dht_key=dht_key.public.hex(),
    )


def _vram_gb(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory / 1e9)


def memory_bytes_of(options: NodeOptions, device: torch.device) -> int:
    if options.memory_gb is not None:
        return round(options.memory_gb * 1e9)
    return devices.available_memory(device)


def find_platform(options: NodeOptions) -> tuple[str, DhtEndpoint | None]:
    """The platform's URL, and where the DHT is by the node's own options."""
    try:
        endpoint = dht_endpoint(options.dht_peers, options.operator_key)
        return platform_url(options.discovery, endpoint), endpoint
    except PlatformNotFound as error:
        raise CannotServe(str(error)) from None


def open_platform(url: str) -> httpx.Client:
    try:
        return client(url, timeout=heartbeats.TIMEOUT)
    except PlatformError as error:
        raise CannotServe(str(error)) from None


def make_announcer(
    options: NodeOptions, node: RegistrationReply, key: SigningKey, own: DhtEndpoint | None
) -> Announcer | None:
    """The announcer; none where the platform has no DHT, or its key is not the one that the options
    name.

    Args:
        own: Where the DHT is by the node's own options.
    """
    access = node.dht
    if access is None or not options.announce:
        return None
    key_there, pinned = access.operator_key, options.operator_key
    if pinned is not None and pinned.strip().lower() != key_there:
        log.error("operator_key_differs", pinned=pinned, told=key_there)
        return None
    peers = tuple(dict.fromkeys((*(own.peers if own else ()), *access.peers)))
    if not peers:
        return None
    credential = NodeCredential(
        node.node_id, access.registration, options.model, key, access.credential
    )
    return Announcer(DhtEndpoint(peers, key_there), credential, node.span)


def open_transport(
    redis: str | None, url: str, node: RegistrationReply, free_kv: Callable[[], int]
) -> Transport:
    """The transport: Redis where the options name one, else the platform's relay."""
    try:
        if redis:
            return RedisTransport(redis, node.node_id, free_kv)
        return RelayTransport(url, node.node_token, free_kv)
    except TransportUnreachable as error:
        raise CannotServe(f"{error} Is {'--redis' if redis else '--discovery'} right?") from None


def serve_metrics(port: int) -> None:
    if not port:
        return
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise CannotServe(
            f"Cannot serve metrics on port {port}: {error.strerror}. Choose another "
            "--metrics-port, or 0 for none."
        ) from None
