"""Erases the stored tokens of jobs that may be read no more."""

from typing import Any

import structlog

from market.jobs.reading import stored_tokens
from market.resources import Resources

log = structlog.get_logger()


async def erase_tokens(ctx: dict[str, Any]) -> None:
    """arq cron: erase what has been kept for `generation.stream_ttl`."""
    resources: Resources = ctx["resources"]
    pages = await stored_tokens.erase_expired(resources.sessions)
    if pages:
        log.info("tokens_erased", pages=pages)
