"""Watches one generation to its end.

No token passes through here: nodes write tokens. The supervisor polls every :data:`POLL_SECONDS`
how far they are, and reads at once what they report (ended, refused).
"""

import time

import structlog

from market.jobs import live_session
from market.jobs.live_session import TokenEntry
from market.nodes import refusals
from mesh.wire import Cancel, Ended, Pong, PrefixReused
from workers.supervisor import completion, epochs, prefill
from workers.supervisor.claims import Claim
from workers.supervisor.errors import GenerationOver
from workers.supervisor.faults.recovery import Recovery
from workers.supervisor.faults.stalls import StallWatch
from workers.supervisor.supervision import Supervision

log = structlog.get_logger()

POLL_SECONDS = 0.2
"""Seconds between polls of a generation's progress, and of its nodes' keep-alives."""


class Supervisor:
    """The loop of one supervision."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._recovery = Recovery(supervision)
        self._stalls = StallWatch(supervision, self._recovery)

    async def run(self) -> None:
        """Supervise until the generation ends, however it does.

        Raises:
            NoRouteNow: the generation has to wait for a route, without a supervisor.
            LeaseLost: another supervisor has taken over.
        """
        supervision = self._supervision
        log.info(
            "inference_started",
            request_id=supervision.id,
            model_id=supervision.model.id,
            user_wallet=supervision.job.user_wallet,
            tier=supervision.job.tier,
            lease=supervision.lease.counter,
        )
        go_on = self._resume
        while True:
            try:
                await go_on()
                await self._watch()
            except GenerationOver as over:
                tokens = await self._seal(over)
                if len(tokens) >= over.tokens:
                    await self._end(over, tokens)
                    return
            go_on = self._regenerate

    async def _resume(self) -> None:
        """Go on where a predecessor stopped, or begin."""
        supervision = self._supervision
        recorded = await supervision.load_route()
        if supervision.has_waited:
            await self._resume_after_wait()
            return
        supervision.check_time_and_cancel()
        await supervision.check_cancelled()
        for event in await supervision.read_events(0):  # that a predecessor did not live to act on
            await self._act(event)
        writes = await live_session.current_epoch(supervision.redis, supervision.id)
        if (
            supervision.epoch == supervision.job.epoch
            and not writes == recorded == supervision.epoch
        ):
            await epochs.open_next(supervision, "first" if supervision.epoch == 0 else "taken_over")

    async def _resume_after_wait(self) -> None:
        supervision = self._supervision
        supervision.check_time_and_cancel(late="no_route")
        await supervision.check_cancelled()
        for event in await supervision.read_events(0):
            if isinstance(event, Ended):  # nodes of the epoch before write until the next begins
                await supervision.check_ended(event)
        await epochs.open_next(supervision, supervision.state.reason)

    async def _regenerate(self) -> None:
        """Redis has lost tokens between the end and what was to be stored of it; or the user has
        cancelled there, and does not get them."""
        self._supervision.check_time_and_cancel()
        await self._supervision.check_cancelled()
        await self._recovery.recover_from_lost_tokens()

    async def _watch(self) -> None:
        supervision, tokens = self._supervision, 0
        await supervision.count_progress(await supervision.token_count())
        poll_at = time.monotonic() + POLL_SECONDS
        while True:
            for event in await supervision.read_events(max(poll_at - time.monotonic(), 0.001)):
                await self._act(event)
            supervision.check_time_and_cancel()
            if time.monotonic() < poll_at:
                continue  # an event came before the poll is due
            progress = await live_session.progress(
                supervision.redis, supervision.id, supervision.node_ids
            )
            if progress.cancelled:
                raise GenerationOver("cancelled")
            if progress.tokens != tokens:
                tokens = progress.tokens
                await supervision.count_progress(tokens)
                await self._recovery.count_pending(tokens)
            if progress.epoch != supervision.epoch:
                await epochs.open_next(supervision, "redis_lost")
            elif not await self._recovery.recover_from_silence(progress.responding):
                await self._stalls.check(tokens, progress.responding)
            poll_at = time.monotonic() + POLL_SECONDS

    async def _act(self, claim: Claim) -> None:
        if claim.epoch != self._supervision.epoch:
            return  # a claim before this one has begun a new epoch
        match claim:
            case Ended():
                await self._supervision.check_ended(claim)
                await self._recovery.recover_from_wrong_end()
            case Pong():
                self._stalls.record_answer(claim)
            case PrefixReused():
                pass  # noted for the bill
            case Cancel():
                raise GenerationOver("cancelled")
            case fault:
                await self._recovery.recover_from_fault(fault)

    async def _seal(self, over: GenerationOver) -> list[TokenEntry]:
        """Let nobody write any more; returns what can be read. Nodes that a user has no use for any
        more are let go before the bill is written."""
        supervision, ttl = self._supervision, self._supervision.generation_settings.stream_ttl
        if over.reason == "cancelled" and not await supervision.token_count():
            await prefill.stop(supervision)
        tokens = await live_session.seal(
            supervision.redis, supervision.id, supervision.epoch, ttl=ttl
        )
        if over.reason == "cancelled":
            await epochs.close(supervision, supervision.route, supervision.epoch)
        supervision.lease.progressed()
        return tokens

    async def _end(self, over: GenerationOver, tokens: list[TokenEntry]) -> None:
        supervision, ttl = self._supervision, self._supervision.generation_settings.stream_ttl
        await supervision.count_progress(len(tokens), now=True)
        outcome = await completion.end(
            supervision.resources,
            supervision.lease,
            edge_units=supervision.model.edge_units,
            reason=over.reason,
            code=over.code,
            progress=completion.Progress(
                tokens=tokens,
                first_token_at=await live_session.first_token_at(supervision.redis, supervision.id),
                cached=supervision.cached,
                positions=supervision.positions,
                drafts=supervision.drafts,
            ),
        )
        supervision.lease.progressed()
        await live_session.finish(supervision.redis, supervision.id, outcome, ttl=ttl)
        if over.reason != "cancelled":
            await epochs.close(supervision, supervision.route, supervision.epoch)
        served = over.code is None and over.reason != "cancelled"
        await self._recovery.count_pending(len(tokens) + served)
        if served:
            await refusals.forget(supervision.redis, supervision.node_ids)
