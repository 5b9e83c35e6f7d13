"""What the routes work with: opened when the process starts, closed when it ends."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from api.http import startup_checks
from api.http.reading.read_cache import ReadCache
from api.http.reading.reader_slots import ReaderSlots
from api.relay.hub import RelayHub
from api.schemas.job_events import token_event
from api.server.download_slots import DownloadSlots
from api.server.transfers import TransferBudget
from market.catalog.published_weights import PublishedWeights
from market.geo.geoip import GeoIp
from market.identity.api_keys import KeyLookups
from market.jobs.reading import packed_tokens
from market.jobs.reading.snapshot import JobSnapshots
from market.jobs.reading.token_hub import TokenHub
from market.jobs.submission.submissions import Submissions
from market.resources import Resources, open_resources
from market.settings import Settings
from market.wallet_turns import WalletTurns

MAX_CHATS = 2
"""Chats that one process makes prompts at once: a template and schemas may take a processor for
seconds."""

log = structlog.get_logger()


@dataclass(kw_only=True)
class Services(Resources):
    """The domain's resources, and what only the gateway has."""

    limiter: MovingWindowRateLimiter
    counting_limiter: SlidingWindowCounterRateLimiter
    read_cache: ReadCache
    geoip: GeoIp
    relay: RelayHub
    published_weights: PublishedWeights
    downloads: DownloadSlots
    tokens: TokenHub
    packed_tokens: TokenHub
    """For readers who are given something else than the events that most share."""
    snapshots: JobSnapshots
    reader_slots: ReaderSlots
    submissions: Submissions
    chat_turns: WalletTurns
    """At chats that are made prompts."""
    key_lookups: KeyLookups
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


@asynccontextmanager
async def open_services(
    settings: Settings, transfers: TransferBudget | None = None
) -> AsyncIterator[Services]:
    """Connect to everything; closes it all again at the end.

    Args:
        settings: Of the process.
        transfers: The process's budget; one of its own if not given.

    Raises:
        ValueError: a setting is missing or wrong, or a model cannot be read.
    """
    startup_checks.check(settings)
    geoip = GeoIp(settings.discovery.geoip_database)
    try:
        async with (
            open_resources(settings) as resources,
            TokenHub(resources, token_event).running() as tokens,
            TokenHub(resources, packed_tokens.pack).running() as packed,
        ):
            storage = RedisStorage(
                f"async+{settings.redis_url}",
                implementation="redispy",
                connection_pool=resources.redis.connection_pool,  # type: ignore[arg-type]
            )
            services = Services(
                **vars(resources),
                limiter=MovingWindowRateLimiter(storage),
                counting_limiter=SlidingWindowCounterRateLimiter(storage),
                read_cache=ReadCache(settings.limits.read_cache),
                geoip=geoip,
                relay=RelayHub(
                    resources.redis.connection_pool,
                    settings.relay,
                    transfers or TransferBudget(settings.limits),
                    resources.sessions,
                ),
                published_weights=PublishedWeights(settings.models, settings.weights),
                downloads=DownloadSlots(settings.limits),
                tokens=tokens,
                packed_tokens=packed,
                snapshots=JobSnapshots(resources),
                reader_slots=ReaderSlots(settings.limits),
                submissions=Submissions(resources),
                chat_turns=WalletTurns(MAX_CHATS),
                key_lookups=KeyLookups(resources.sessions),
            )
            try:
                yield services
            finally:
                await services.read_cache.close()
                await services.finish_background()
                await services.relay.close()
    finally:
        geoip.close()


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]
