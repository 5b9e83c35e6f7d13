"""The arq task that supervises a generation: acquire its lease, see it through to its end."""

import asyncio
import contextlib
from typing import Any

import structlog

from market.outages import OUTAGES
from market.resources import Resources
from workers.exclusive import Stalled
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
    except Stalled as error:
        log.error("supervision_stalled", request_id=request_id, reason=str(error))
        await _release(held)
    except OUTAGES as error:
        log.warning("supervision_interrupted", request_id=request_id, error=type(error).__name__)
        await _release(held)
        raise
    except asyncio.CancelledError:
        await _release(held)
        raise


async def _release(held: lease.Lease) -> None:
    """Let another worker go on at once: the sweeper enqueues the generation again. If Postgres does
    not answer, the lease runs out."""
    with contextlib.suppress(*OUTAGES):
        await held.release()
