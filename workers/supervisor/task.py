"""The task that sees a generation through: take its lease, supervise it."""

import asyncio
from typing import Any

import structlog

from market.resources import Resources
from workers.supervisor import lease
from workers.supervisor.errors import LeaseLost
from workers.supervisor.session import Session
from workers.supervisor.supervisor import Supervisor

log = structlog.get_logger()


async def supervise(ctx: dict[str, Any], request_id: str) -> None:
    """arq task: see a generation through to its end, unless another worker does already."""
    resources: Resources = ctx["resources"]
    taken = await lease.take(resources.sessions, request_id, resources.settings.generation.lease)
    if taken is None:
        return
    try:
        await taken.renew_while(Supervisor(Session(resources, taken)).run())
    except LeaseLost:
        log.warning("lease_lost", request_id=request_id, lease=taken.counter)
    except asyncio.CancelledError:
        await taken.give_back()
        raise
