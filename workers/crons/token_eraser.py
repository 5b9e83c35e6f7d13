"""Erases the stored tokens of jobs that may be read no more."""

from typing import Any

import structlog

from market.jobs.reading import erasure
from market.resources import Resources

log = structlog.get_logger()


async def erase_tokens(ctx: dict[str, Any]) -> None:
    """arq cron: erase what has been kept for `generation.stream_ttl`."""
    resources: Resources = ctx["resources"]
    rows = await erasure.erase_expired(resources.sessions)
    if rows:
        log.info("tokens_erased", rows=rows)
