"""What the domain works with, opened once a process: settings, Postgres, Redis, queue, catalog."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from market import db, queue
from market.catalog.models import Catalog
from market.clients.postgres import LONG
from market.clients.redis_client import open_redis
from market.prompt_vault import PromptVault
from market.routing.skip_counts import SkipCounter
from market.settings import Settings

MAX_REDIS_CONNECTIONS = 2000
"""Each supervisor that waits for an event, and each node that the relay serves, holds one. All
readers of a process share one of their own."""

LONG_POOL_SIZE = 2
"""Transactions of minutes at a time in one process, and as many again in a rush."""


@dataclass
class Resources:
    """What each process opens, whatever it does."""

    settings: Settings
    engine: AsyncEngine
    sessions: db.Sessions
    long_sessions: db.Sessions
    """For statements that may take minutes."""
    reads: db.Sessions
    """For what strangers may read: few connections, short statements, no writing."""
    own_reads: db.Sessions
    """For what those who are logged in read of their own: as many connections again, which no
    stranger's slow read takes."""
    redis: Redis
    queue: ArqRedis
    catalog: Catalog
    vault: PromptVault
    skips: SkipCounter


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open the clients of everything, each of which connects when first used; closes them all again
    at the end. A process starts whether or not Postgres and Redis answer.

    Raises:
        ValueError: the prompt key is no key, or a model cannot be read.
        UnsupportedModel: no node would serve one of the models.
    """
    vault = PromptVault(settings.generation.prompt_key.get_secret_value())
    catalog = Catalog(settings.models)
    pool = queue.open_queue(settings.redis_url)
    redis = open_redis(settings.redis_url, max_connections=MAX_REDIS_CONNECTIONS)
    engine, sessions = db.connect(settings.database_url)
    long_engine, long_sessions = db.connect(
        settings.database_url, pool_size=LONG_POOL_SIZE, limits=LONG
    )
    read_timeout = settings.limits.read_timeout
    read_engine, reads = db.connect_reads(settings.database_url, timeout=read_timeout)
    own_engine, own_reads = db.connect_reads(settings.database_url, timeout=read_timeout)
    try:
        yield Resources(
            settings=settings,
            engine=engine,
            sessions=sessions,
            long_sessions=long_sessions,
            reads=reads,
            own_reads=own_reads,
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
        await long_engine.dispose()
        await read_engine.dispose()
        await own_engine.dispose()
