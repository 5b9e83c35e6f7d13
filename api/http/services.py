"""What the routes work with: made once when the process starts, closed when it ends."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from arq.connections import ArqRedis
from fastapi import Depends, Request
from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis

from api.relay.hub import RelayHub
from market import db, queue
from market.catalog.models import Catalog
from market.catalog.published_weights import PublishedWeights
from market.geo.geoip import GeoIp
from market.prompt_vault import PromptVault
from market.routing.skip_counts import SkipCounter
from market.settings import Settings
from market.settings.limits import LimitSettings
from mesh.dht.signing_keys import SigningKey

log = structlog.get_logger()

MAX_REDIS_CONNECTIONS = 2000
"""Each reader that waits for a token holds one. A node's connection has one of its own beside."""

REDIS_TIMEOUT = 5.0
"""Seconds after which a Redis that says nothing counts as unreachable; longer than any read here
waits for a token."""

MIN_SECRET_BYTES = 32
"""What RFC 7518 asks of a key for HS256."""


@dataclass
class Services:
    settings: Settings
    sessions: db.Sessions
    redis: Redis
    queue: ArqRedis
    catalog: Catalog
    vault: PromptVault
    limiter: MovingWindowRateLimiter
    places: GeoIp
    relay: RelayHub
    published: PublishedWeights
    skips: SkipCounter
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that must finish although its request is gone."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_failed", error=type(error).__name__)

    async def finish_background(self) -> None:
        """Wait for what runs in the background."""
        await asyncio.gather(*self._background, return_exceptions=True)


def check_secret(secret: str) -> None:
    """
    Raises:
        ValueError: tokens signed with this could be forged.
    """
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(
            f"FAR_AUTH__JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes. "
            "Make one: openssl rand -base64 32"
        )


def check_seed(seed: str) -> None:
    """
    Raises:
        ValueError: no Ed25519 seed.
    """
    try:
        SigningKey.from_hex(seed)
    except ValueError:
        raise ValueError(
            "FAR_DISCOVERY__DHT_OPERATOR_KEY must be 32 bytes in hex. "
            "Make one: openssl rand -hex 32"
        ) from None


def check_rules(limits: LimitSettings) -> None:
    """
    Raises:
        ValueError: a rule is not of the form ``100/hour``.
    """
    for name, rule in limits:
        if isinstance(rule, str):
            try:
                parse(rule)
            except ValueError:
                raise ValueError(
                    f"FAR_LIMITS__{name.upper()} is like 100/hour; got {rule!r}."
                ) from None


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to everything; closes it all again at the end.

    Raises:
        ValueError: a secret is missing or too short, or a model cannot be read.
    """
    check_secret(settings.auth.jwt_secret.get_secret_value())
    check_rules(settings.limits)
    if seed := settings.discovery.dht_operator_key.get_secret_value():
        check_seed(seed)
    vault = PromptVault(settings.generation.prompt_key.get_secret_value())
    catalog = Catalog(settings.models)
    places = GeoIp(settings.discovery.geoip_database)
    engine, sessions = db.connect(settings.database_url)
    redis = Redis.from_url(
        settings.redis_url,
        max_connections=MAX_REDIS_CONNECTIONS,
        socket_connect_timeout=REDIS_TIMEOUT,
        socket_timeout=REDIS_TIMEOUT,
    )
    pool = await queue.connect(settings.redis_url)
    storage = RedisStorage(
        f"async+{settings.redis_url}",
        implementation="redispy",
        connection_pool=redis.connection_pool,
    )
    services = Services(
        settings=settings,
        sessions=sessions,
        redis=redis,
        queue=pool,
        catalog=catalog,
        vault=vault,
        limiter=MovingWindowRateLimiter(storage),
        places=places,
        relay=RelayHub(redis.connection_pool, settings.relay),
        published=PublishedWeights(settings.models, settings.weights),
        skips=SkipCounter(redis),
    )
    try:
        yield services
    finally:
        await services.finish_background()
        await services.relay.close()
        await pool.aclose()
        await redis.aclose()
        await engine.dispose()
        places.close()


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]
