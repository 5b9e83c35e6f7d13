"""What the tasks work with: made once when a worker starts."""

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


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    engine: AsyncEngine
    sessions: db.Sessions
    redis: Redis
    queue: ArqRedis
    catalog: Catalog
    vault: PromptVault
    skips: SkipCounter


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to everything; closes it all again at the end."""
    engine, sessions = db.connect(settings.database_url)
    redis = Redis.from_url(settings.redis_url, max_connections=2000)
    pool = await queue.connect(settings.redis_url)
    try:
        yield Services(
            skips=SkipCounter(redis),
            settings=settings,
            engine=engine,
            sessions=sessions,
            redis=redis,
            queue=pool,
            catalog=Catalog(settings.models),
            vault=PromptVault(settings.generation.prompt_key.get_secret_value()),
        )
    finally:
        await pool.aclose()
        await redis.aclose()
        await engine.dispose()
