"""The arq task that supervises a generation: acquire its lease, see it through to its end."""

import asyncio
import contextlib
import datetime as dt
from typing import Any

import structlog

from market.jobs import live_session
from market.outages import OUTAGES, is_outage
from market.resources import Resources
from workers.exclusive import Stalled
from workers.supervisor import completion, epochs, lease
from workers.supervisor.errors import LeaseLost, NoRouteNow
from workers.supervisor.lease import Lease
from workers.supervisor.supervision import Supervision
from workers.supervisor.supervisor import Supervisor

log = structlog.get_logger()


async def supervise(ctx: dict[str, Any], request_id: str) -> None:
    """arq task: see a generation through to its end, unless another worker does already, or to
    where it has to wait for a route."""
    resources: Resources = ctx["resources"]
    held = await lease.acquire(resources.sessions, request_id, resources.settings.generation.lease)
    if held is None:
        return
    try:
        if held.job.model_id in resources.catalog:
            await _supervise(Supervision(resources, held), held)
        else:
            await _end_without_model(resources, held)
    except LeaseLost:
        log.warning("lease_lost", request_id=request_id, lease=held.counter)
    except Stalled as error:
        log.error("supervision_stalled", request_id=request_id, reason=str(error))
        await _release(held)
    except OUTAGES as error:
        if not is_outage(error):  # a bug of ours: not tried again before the lease has run out
            log.error("supervision_failed", request_id=request_id, error=type(error).__name__)
            raise
        log.warning("supervision_interrupted", request_id=request_id, error=type(error).__name__)
        await _release(held)
        raise
    except asyncio.CancelledError:
        await _release(held)
        raise


async def _end_without_model(resources: Resources, held: Lease) -> None:
    """End a generation whose model is not on offer any more, if it is cancelled or its deadline is
    over; until then a worker with other settings may go on. What the edge did beside its layers is
    known no more, so that its part of the payment is that of its layers."""
    job, ttl = held.job, resources.settings.generation.stream_ttl
    if not held.cancel_requested and job.deadline_at > dt.datetime.now(dt.UTC):
        log.error("model_not_on_offer", request_id=job.request_id, model_id=job.model_id)
        await _release(held)
        return
    tokens = await live_session.seal(resources.redis, job.request_id, job.epoch, ttl=ttl)
    outcome = await completion.end(
        resources,
        held,
        edge_units=0,
        reason="cancelled" if held.cancel_requested else "failed",
        code=None if held.cancel_requested else "deadline_exceeded",
        progress=completion.Progress(
            tokens=tokens,
            first_token_at=await live_session.first_token_at(resources.redis, job.request_id),
            cached=job.cached_prompt_tokens,
        ),
    )
    await live_session.finish(resources.redis, job.request_id, outcome, ttl=ttl)


async def _release(held: Lease) -> None:
    """Let another worker go on at once: the sweeper enqueues the generation again. If Postgres does
    not answer, the lease runs out."""
    with contextlib.suppress(*OUTAGES):
        await held.release()


async def _supervise(supervision: Supervision, held: Lease) -> None:
    try:
        await held.renew_while(Supervisor(supervision).run())
    except NoRouteNow:
        await _let_wait(supervision, held)


async def free_kv(resources: Resources, request_id: str) -> None:
    """Let a generation that waits for a route give back the KV cache that it has kept, unless a
    supervisor has it."""
    held = await lease.acquire(resources.sessions, request_id, resources.settings.generation.lease)
    if held is None:
        return
    supervision = Supervision(resources, held)
    await supervision.load_route()
    await epochs.free_kv(supervision)
    await _let_wait(supervision, held)


async def _let_wait(supervision: Supervision, held: Lease) -> None:
    supervision.state.hops, supervision.state.positions = supervision.route, supervision.positions
    await held.wait(supervision.state.to_json())
    log.info(
        "waits_for_route",
        request_id=supervision.id,
        epoch=supervision.epoch,
        reason=supervision.state.reason,
        keeps_kv=bool(supervision.route),
    )
