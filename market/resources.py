"""What the domain works with, opened once a process: settings, Postgres, Redis, queue, catalog."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from market import db, queue
from market.catalog.models import Catalog
from market.prompt_vault import PromptVault
from market.routing.skip_counts import SkipCounter
from market.settings import Settings

MAX_REDIS_CONNECTIONS = 2000
"""Each reader that waits for a token, and each supervisor that waits for an event, holds one."""


@dataclass
class Resources:
    """What each process opens, whatever it does."""

    settings: Settings
    engine: AsyncEngine
    sessions: db.Sessions
    reads: db.Sessions
    """For what strangers may read: few connections, short statements, no writing."""
    redis: Redis
    queue: ArqRedis
    catalog: Catalog
    vault: PromptVault
    skips: SkipCounter


@asynccontextmanager
async def open_resources(
    settings: Settings, *, redis_timeout: float | None = None
) -> AsyncIterator[Resources]:
    """Connect to everything; closes it all again at the end.

    Args:
        redis_timeout: Seconds after which a Redis that says nothing counts as unreachable; none
            to wait for as long as a command takes.

    Raises:
        ValueError: the prompt key is no key, or a model cannot be read.
    """
    vault = PromptVault(settings.generation.prompt_key.get_secret_value())
    catalog = Catalog(settings.models)
    engine, sessions = db.connect(settings.database_url)
    read_engine, reads = db.connect_reads(
        settings.database_url, timeout=settings.limits.read_timeout
    )
    redis = Redis.from_url(
        settings.redis_url,
        max_connections=MAX_REDIS_CONNECTIONS,
        socket_connect_timeout=redis_timeout,
        socket_timeout=redis_timeout,
    )
    pool = await queue.connect(settings.redis_url)
    try:
        yield Resources(
            settings=settings,
            engine=engine,
            sessions=sessions,
            reads=reads,
            redis=redis,
            queue=pool,
            catalog=catalog,
            vault=vault,
            skips=SkipCounter(redis),
        )
    finally:
        await pool.aclose()
        await redis.aclose()
        await engine.dispose()
        await read_engine.dispose()
