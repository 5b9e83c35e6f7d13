"""The DHT's side of the discovery service.

A peer on port 31337, and the mirror. It ends when its peer does: whoever started it starts it
again, with the same identity, so that its address stays.
"""

import asyncio
import signal

import structlog
from prometheus_client import start_http_server

from discovery import metrics
from discovery.mirror import Mirror
from market import db
from market.catalog.models import Catalog
from market.clients.redis_client import open_redis
from market.dht.operator_key import operator_key
from market.settings import Settings
from market.settings.discovery import DiscoverySettings
from mesh.dht.peer import Peer
from mesh.dht.signing_keys import SigningKey

PASS_TIMEOUT = 60.0
"""Seconds after which a pass is given up: something does not answer."""

logger = structlog.get_logger()


class DiscoveryStartError(Exception):
    """The service does not start; the message says what to change."""


async def serve(settings: Settings) -> int:
    """Mirror until SIGTERM or Ctrl-C, or until the peer has died; the exit status.

    Raises:
        DiscoveryStartError: a setting is missing, or the peer does not start.
    """
    operator = _operator_key(settings.discovery)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    model_ids = [model.id for model in Catalog(settings.models)]
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr="127.0.0.1")
    peer = await open_peer(settings.discovery, operator)
    engine, sessions = db.connect(settings.database_url)
    redis = open_redis(settings.redis_url)
    mirror = Mirror(
        peer, operator, redis, sessions, settings.discovery, model_ids, settings.public_url
    )
    try:
        logger.info("dht_started", peers=await peer.addresses(), operator_key=operator.public.hex())
        while not stop.is_set() and peer.alive:
            await _pass(mirror)
            await _wait(stop, settings.discovery.dht_mirror_interval)
        if not stop.is_set():
            logger.error("dht_peer_died")
        return 0 if stop.is_set() else 1
    finally:
        await peer.close()
        await redis.aclose()
        await engine.dispose()


async def open_peer(discovery: DiscoverySettings, operator: SigningKey) -> Peer:
    """The peer that the settings describe. If no other answers, it starts by itself: they find it.

    Raises:
        DiscoveryStartError: the peer does not start.
    """
    reason = ""
    for bootstrap in dict.fromkeys((tuple(discovery.dht_bootstrap), ())):
        try:
            return await Peer.serve(
                operator.public,
                port=discovery.dht_port,
                host=discovery.dht_host,
                identity=discovery.dht_identity,
                announced=discovery.dht_announced,
                bootstrap=bootstrap,
                ask=discovery.dht_bootstrap,
                on_refused=lambda reason: metrics.dht_refused.labels(reason).inc(),
            )
        except Exception as error:  # hivemind raises whatever happens to it
            reason = f"{type(error).__name__}: {error}"
            logger.warning("dht_peer_failed", bootstrap=bootstrap, reason=reason)
    raise DiscoveryStartError(
        f"The DHT's peer does not start on {discovery.dht_host}:{discovery.dht_port} ({reason})."
    )


def _operator_key(discovery: DiscoverySettings) -> SigningKey:
    """
    Raises:
        DiscoveryStartError: the settings name no key, or it is none.
    """
    try:
        key = operator_key(discovery)
    except ValueError as error:
        raise DiscoveryStartError(str(error)) from None
    if key is None:
        raise DiscoveryStartError(
            "FAR_DISCOVERY__DHT_OPERATOR_KEY is not set. Make one: openssl rand -hex 32"
        )
    return key


async def print_peers(settings: Settings) -> int:
    """Start the peer, show what to hand out, and stop it again.

    Raises:
        DiscoveryStartError: as in `serve`.
    """
    operator = _operator_key(settings.discovery)
    peer = await open_peer(settings.discovery, operator)
    for address in await peer.addresses():
        print(f"--dht-peers {address}")
    print(f"--operator-key {operator.public.hex()}")
    await peer.close()
    return 0


async def _pass(mirror: Mirror) -> None:
    try:
        async with asyncio.timeout(PASS_TIMEOUT):
            await mirror.run_once()
    except Exception as error:  # Redis, Postgres or the DHT: the next pass does it all again
        logger.warning("mirror_failed", reason=f"{type(error).__name__}: {error}")


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
