"""Watches one generation to its end.

No token passes through here: nodes write tokens. The supervisor polls every :data:`POLL_SECONDS`
how far they are, and reads at once what they report (ended, refused).
"""

import time

import structlog

from market.jobs import live_session
from mesh.wire import ControlMessage, Ended, Refused
from workers.supervisor import completion, epochs
from workers.supervisor.errors import GenerationOver
from workers.supervisor.recovery import Recovery
from workers.supervisor.session import Session

log = structlog.get_logger()

POLL_SECONDS = 0.2
"""Seconds between polls of a generation's progress, and of its nodes' keep-alives."""


class Supervisor:
    """The loop of one supervision."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._recovery = Recovery(session)

    async def run(self) -> None:
        """Supervise until the generation ends, however it does.

        Raises:
            LeaseLost: another supervisor has taken over.
        """
        session = self._session
        log.info(
            "inference_started",
            request_id=session.id,
            model_id=session.model.id,
            user_wallet=session.job.user_wallet,
            tier=session.job.tier,
            lease=session.lease.counter,
        )
        try:
            await self._resume()
            await self._watch()
        except GenerationOver as over:
            await self._end(over)

    async def _resume(self) -> None:
        """Go on where a predecessor stopped, or begin."""
        session = self._session
        recorded = await session.load_route()
        session.check_time_and_cancel()
        for event in await session.read_events(0):  # that a predecessor did not live to act on
            await self._act(event)
        writes = await live_session.current_epoch(session.redis, session.id)
        if session.epoch == session.job.epoch and not writes == recorded == session.epoch:
            await epochs.open_next(session, "first" if session.epoch == 0 else "taken_over")

    async def _watch(self) -> None:
        session = self._session
        tokens, progressed_at = await session.token_count(), time.monotonic()
        poll_at = time.monotonic() + POLL_SECONDS
        while True:
            for event in await session.read_events(max(poll_at - time.monotonic(), 0.001)):
                await self._act(event)
            session.check_time_and_cancel()
            if time.monotonic() < poll_at:
                continue  # an event came before the poll is due
            progress = await live_session.progress(session.redis, session.id, session.node_ids)
            progressed = True
            if progress.epoch != session.epoch:
                await epochs.open_next(session, "redis_lost")
            elif await self._recovery.recover_from_silence(progress.responding):
                pass
            elif time.monotonic() - progressed_at > session.limits.stall:
                await self._recovery.recover_from_stall()
            else:
                progressed = progress.tokens != tokens
                tokens = progress.tokens
            poll_at = time.monotonic() + POLL_SECONDS
            if progressed:
                progressed_at = time.monotonic()

    async def _act(self, event: ControlMessage) -> None:
        if event.epoch != self._session.epoch:
            return  # an event before this one has begun a new epoch
        match event:
            case Ended():
                await self._session.check_ended(event)
                await epochs.open_next(self._session, "redis_lost")
            case Refused():
                await self._recovery.recover_from_refusal(event)

    async def _end(self, over: GenerationOver) -> None:
        session, ttl = self._session, self._session.limits.stream_ttl
        tokens = await live_session.seal(session.redis, session.id, ttl=ttl)
        if over.code is None:
            outcome = await completion.complete(
                session.resources,
                session.lease,
                session.model,
                tokens=tokens,
                reason=over.reason,
                first_token_at=await live_session.first_token_at(session.redis, session.id),
            )
        else:
            outcome = await completion.fail(session.resources, session.lease, code=over.code)
        await live_session.finish(session.redis, session.id, outcome, ttl=ttl)
        await epochs.close(session, session.route, session.epoch)
