"""What the routes work with: made once when the process starts, closed when it ends."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from arq.connections import ArqRedis
from fastapi import Depends, Request
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis

from mesh import db, queue
from mesh.catalog import Catalog
from mesh.prompts import PromptVault
from mesh.settings import Settings


@dataclass
class Services:
    settings: Settings
    sessions: db.Sessions
    redis: Redis
    queue: ArqRedis
    catalog: Catalog
    vault: PromptVault
    limiter: MovingWindowRateLimiter
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that must finish although its request is gone."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def finish_background(self) -> None:
        """Wait for what runs in the background."""
        await asyncio.gather(*self._background, return_exceptions=True)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to everything; closes it all again at the end."""
    engine, sessions = db.connect(settings.database_url)
    redis = Redis.from_url(settings.redis_url, max_connections=2000)
    pool = await queue.connect(settings.redis_url)
    storage = RedisStorage(f"async+{settings.redis_url}", implementation="redispy")
    services = Services(
        settings=settings,
        sessions=sessions,
        redis=redis,
        queue=pool,
        catalog=Catalog(settings.models),
        vault=PromptVault(settings.generation.prompt_key.get_secret_value()),
        limiter=MovingWindowRateLimiter(storage),
    )
    try:
        yield services
    finally:
        await services.finish_background()
        await pool.aclose()
        await redis.aclose()
        await engine.dispose()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]
