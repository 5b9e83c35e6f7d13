"""The arq task that supervises a generation: acquire its lease, see it through to its end."""

import asyncio
from typing import Any

import structlog

from market.resources import Resources
from workers.supervisor import lease
from workers.supervisor.errors import LeaseLost
from workers.supervisor.supervision import Supervision
from workers.supervisor.supervisor import Supervisor

log = structlog.get_logger()


async def supervise(ctx: dict[str, Any], request_id: str) -> None:
    """arq task: see a generation through to its end, unless another worker does already."""
    resources: Resources = ctx["resources"]
    held = await lease.acquire(resources.sessions, request_id, resources.settings.generation.lease)
    if held is None:
        return
    try:
        await held.renew_while(Supervisor(Supervision(resources, held)).run())
    except LeaseLost:
        log.warning("lease_lost", request_id=request_id, lease=held.counter)
    except asyncio.CancelledError:
        await held.release()
        raise
