"""One generation's supervisor: picks its route, watches it, and mends it.

No token passes through here. The nodes write tokens; this looks every :data:`LOOK` seconds how far
they are, and reads what they report (ended, refused) at once.
"""

import asyncio
import datetime as dt
import math
import random
import time
from collections.abc import Collection
from typing import Any

import structlog
from sqlalchemy import insert, select, update

from market import metrics
from market.jobs import live_session, messaging
from market.jobs.live_session import TokenEntry
from market.jobs.tables import Job, RouteHop
from market.nodes import live_registry
from market.nodes.node import Node
from market.resources import Services
from mesh import token_stream
from mesh.route_record import RouteRecord
from mesh.wire import Cancel, Close, ControlMessage, Ended, Ping, Pong, Refused
from mesh.wire.refusal_codes import LOST, code_of
from workers.supervisor import completion, lease
from workers.supervisor.errors import LeaseLost
from workers.supervisor.lease import Lease
from workers.supervisor.open_messages import open_messages
from workers.supervisor.route_finder import Hop, RouteFinder

log = structlog.get_logger()

LOOK = 0.2
"""Seconds between looks at a generation's progress, and at its nodes' pulses."""

ROUTE_LOOK = 0.4
"""Seconds between looks for a route while there is none, by the half more or less, so that those
who wait do not all look at once."""

COUNT = 30.0
"""Seconds after which a generation without a route is counted again for the nodes that are there:
about when a client would ask again who is told that there is none."""

HOLD = 15.0
"""Seconds for which a generation without a route keeps its KV room on the nodes that are left. Then
others get it, who may be waiting for it while they hold what this one waits for."""

FULL_PAUSE = 0.5
"""Seconds for which a node without KV room is not asked again by the same generation."""

MOVED_PAUSE = 5.0
"""The same, for a node that no longer serves the span that a route counted on: until the registry
knows, too."""

OPEN_GRACE = 60
"""Seconds for which a node keeps a generation beyond its deadline, if nobody closes it."""


async def supervise(ctx: dict[str, Any], request_id: str) -> None:
    """arq task: see a generation through, unless somebody does already."""
    services: Services = ctx["services"]
    taken = await lease.take(services.sessions, request_id, services.settings.generation.lease)
    if taken is None:
        return
    try:
        await taken.hold_during(Supervisor(services, taken).run())
    except LeaseLost:
        log.warning("lease_lost", request_id=request_id, lease=taken.counter)
    except asyncio.CancelledError:
        await taken.give_back()
        raise


class GenerationOver(Exception):
    """The generation's end was reached: reason, and the code of a failure."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Supervisor:
    """State of one supervision. A successor rebuilds all of it from Postgres and Redis."""

    def __init__(self, services: Services, taken: Lease) -> None:
        job = taken.job
        self._services = services
        self._redis = services.redis
        self._limits = services.settings.generation
        self._lease = taken
        self._id = job.request_id
        self._model = services.catalog.get(job.model_id)
        self._epoch = job.epoch
        self._routes = RouteFinder(services, self._model, job)
        self._route: list[Hop] = []
        self._afresh = False
        self._believed: set[str] = set()
        self._computed = 0
        self._silent_before: set[str] = set()
        self._events_after = token_stream.START
        self._failures = 0

    async def run(self) -> None:
        """Until the end of the generation, whatever it is."""
        log.info(
            "inference_started",
            request_id=self._id,
            model_id=self._model.id,
            user_wallet=self._lease.job.user_wallet,
            tier=self._lease.job.tier,
            lease=self._lease.counter,
        )
        try:
            recorded = await self._recall_route()
            self._check_time_and_cancel()
            for event in await self._hear(0):  # that a predecessor did not live to act on
                await self._act(event)
            writes = await live_session.current_epoch(self._redis, self._id)
            if self._epoch == self._lease.job.epoch and not writes == recorded == self._epoch:
                await self._new_epoch("first" if self._epoch == 0 else "taken_over")
            await self._watch()
        except GenerationOver as over:
            await self._end(over)

    async def _recall_route(self) -> int | None:
        """The newest route that a predecessor left, and its epoch; none if there was none."""
        if self._epoch == 0:
            return None
        async with self._services.sessions() as db:
            rows = await db.execute(
                select(RouteHop.epoch, RouteHop.node_id, RouteHop.start_layer, RouteHop.end_layer)
                .where(RouteHop.session_id == self._lease.job.id)
                .order_by(RouteHop.epoch.desc(), RouteHop.stage)
            )
            hops = rows.all()
        self._route = [Hop(*hop[1:]) for hop in hops if hop.epoch == hops[0].epoch]
        return hops[0].epoch if hops else None

    async def _watch(self) -> None:
        seen, progressed_at = await self._progress(), time.monotonic()
        look_at = time.monotonic() + LOOK
        while True:
            for event in await self._hear(max(look_at - time.monotonic(), 0.001)):
                await self._act(event)
            self._check_time_and_cancel()
            if time.monotonic() < look_at:
                continue  # an event woke us
            look = await live_session.progress(self._redis, self._id, self._node_ids)
            if look.epoch != self._epoch:
                await self._new_epoch("redis_lost")
            elif await self._mend_silence(look.beating):
                pass
            elif time.monotonic() - progressed_at > self._limits.stall:
                if not await self._still_computes():
                    await self._new_epoch("stalled")
            elif look.tokens == seen:
                look_at = time.monotonic() + LOOK
                continue
            else:
                seen = look.tokens
            look_at = time.monotonic() + LOOK
            progressed_at = time.monotonic()

    async def _hear(self, wait: float) -> list[ControlMessage]:
        """Events of this epoch, waiting up to ``wait`` seconds for the first."""
        self._events_after, events = await messaging.read_events(
            self._redis, self._id, self._events_after, wait=wait
        )
        if any(isinstance(event, Cancel) for event in events):
            raise GenerationOver("cancelled")
        return [event for event in events if event.epoch == self._epoch]

    async def _act(self, event: ControlMessage) -> None:
        if event.epoch != self._epoch:
            return  # an event before this one has begun a new epoch
        match event:
            case Ended():
                await self._check_complete(event)
            case Refused():
                await self._mend_refusal(event.node_id, code_of(event))

    async def _check_complete(self, event: Ended) -> None:
        await self._check_ended(event)
        await self._new_epoch("redis_lost")

    async def _check_ended(self, event: Ended) -> None:
        """Over, if readers have all that was written."""
        if await self._progress() >= event.count:
            raise GenerationOver(event.reason)

    async def _mend_refusal(self, node_id: str, code: str) -> None:
        if node_id not in self._node_ids:
            return  # nobody's word against a stranger
        self._afresh = code in LOST
        if code == "kv_full":
            self._routes.avoid(node_id, FULL_PAUSE)
            await self._let_go()
        elif code == "moved":
            self._routes.avoid(node_id, MOVED_PAUSE)
            gone = [hop for hop in self._route if hop.node_id == node_id]
            await self._close(gone, self._epoch)
            self._route = [hop for hop in self._route if hop not in gone]
        elif code in LOST and node_id not in self._believed:
            self._believed.add(node_id)
            log.warning("state_lost", request_id=self._id, node_id=node_id, code=code)
        elif code == "gap":  # a step did not arrive, or was not sent
            await self._blame({node_id, self._sender_to(node_id)}, code)
        else:
            await self._blame([node_id], code)
        await self._new_epoch(code)

    async def _mend_silence(self, beating: set[str]) -> bool:
        """Go around nodes whose pulse was missing at two looks, if there is a way around."""
        silent = set(self._node_ids) - beating
        dead = silent & self._silent_before
        self._silent_before = silent
        if not dead or await self._routes.find(self._route) is None:
            return False
        for node_id in dead:
            await live_registry.evict(self._redis, node_id, self._model.id)
        await self._blame(dead, "silent")
        await self._new_epoch("silent")
        return True

    async def _still_computes(self) -> bool:
        """Whether the route's nodes all live and have come further than when asked last: a long
        prompt, or many generations. Those that do not answer are blamed."""
        for node_id in self._node_ids:
            await messaging.send_to_inbox(
                self._redis, node_id, [Ping(self._id, self._epoch)], ttl=self._limits.stream_ttl
            )
        alive: dict[str, int] = {}
        give_up = time.monotonic() + self._limits.ping
        while len(alive) < len(set(self._node_ids)) and time.monotonic() < give_up:
            for event in await self._hear(self._limits.ping / 4):
                if isinstance(event, Pong):
                    alive[event.node_id] = event.positions
                elif isinstance(event, Ended):
                    await self._check_ended(event)
        silent = [node_id for node_id in self._node_ids if node_id not in alive]
        for node_id in silent:
            await live_registry.evict(self._redis, node_id, self._model.id)
        further = sum(alive.values()) > self._computed
        self._computed = sum(alive.values())
        if further and not silent:
            return True
        await self._blame(silent, "stalled")
        return False

    async def _blame(self, node_ids: Collection[str], code: str) -> None:
        cooldown = self._services.settings.discovery.cooldown
        for node_id in node_ids:
            self._routes.avoid(node_id, cooldown)
            await live_registry.cool_down(self._redis, node_id, seconds=cooldown)
            log.warning("node_blamed", request_id=self._id, node_id=node_id, code=code)
        self._count_failure()

    def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= self._limits.max_failures:
            raise GenerationOver("failed", "stalled")

    async def _new_epoch(self, reason: str) -> None:
        """A route from here on. Old nodes may no longer write from the moment it begins."""
        route = await self._wait_for_route()
        if reason != "first":
            metrics.reroutes.labels(self._model.id, reason).inc()
        job = self._lease.job
        await self._claim_epoch()
        positions = job.prompt_tokens + job.max_tokens
        live = RouteRecord(self._model.width, positions, [node.node_id for node in route])
        await live_session.begin_epoch(self._redis, self._id, self._epoch, live, ttl=self._keep())
        generated = [token.token_id for token in await self._tokens()]
        if len(generated) >= job.max_tokens:
            raise GenerationOver("length")
        await self._record(route, first_token=len(generated))
        self._computed = 0
        served, self._route = self._route, [Hop.of(node) for node in route]
        kept = set() if self._afresh or not generated else set(served) & set(self._route)
        self._afresh = False
        await self._close(set(served) - set(self._route), self._epoch - 1)
        await self._open(generated, kept)
        log.info(
            "route_opened",
            request_id=self._id,
            epoch=self._epoch,
            reason=reason,
            nodes=self._node_ids,
            kept=len(kept),
            tokens_so_far=len(generated),
        )
        await self._routes.count_skips()

    async def _wait_for_route(self) -> list[Node]:
        """A route with room reserved. Waits until the job's deadline."""
        count_at = time.monotonic()
        let_go_at = count_at + HOLD
        while True:
            route = await self._routes.find(self._route)
            if route is not None and await self._routes.reserve(route, self._route):
                return route
            if route is None and time.monotonic() >= count_at:
                await self._routes.count_skips()
                count_at += COUNT
            for event in await self._hear(ROUTE_LOOK * random.uniform(0.5, 1.5)):
                if isinstance(event, Ended):  # the epoch before lives until the next one begins
                    await self._check_ended(event)
            self._check_time_and_cancel(late="no_route")
            if time.monotonic() > let_go_at:
                await self._let_go()

    async def _let_go(self) -> None:
        """Give all KV room back; the next route begins afresh."""
        await self._close(self._route, self._epoch)
        self._route = []

    async def _claim_epoch(self) -> None:
        async with self._services.sessions.begin() as db:
            epoch = await db.scalar(
                update(Job)
                .where(
                    Job.id == self._lease.job.id,
                    Job.lease_counter == self._lease.counter,
                )
                .values(epoch=Job.epoch + 1)
                .returning(Job.epoch)
            )
        if epoch is None:
            raise LeaseLost
        self._epoch = epoch

    async def _record(self, route: list[Node], *, first_token: int) -> None:
        rows = [
            {
                "session_id": self._lease.job.id,
                "epoch": self._epoch,
                "stage": stage,
                "node_id": node.node_id,
                "wallet_address": node.wallet_address,
                "start_layer": node.start_layer,
                "end_layer": node.end_layer,
                "first_token": first_token,
            }
            for stage, node in enumerate(route)
        ]
        async with self._services.sessions.begin() as db:
            await db.execute(insert(RouteHop), rows)

    async def _open(self, generated: list[int], kept: Collection[Hop]) -> None:
        """Tell every node what to expect. Hops in ``kept`` served the epoch before."""
        job, vault = self._lease.job, self._services.vault
        if job.request_cipher is None:
            raise GenerationOver("failed", "prompt_lost")
        prompt = vault.open(self._id, job.request_cipher)
        messages = open_messages(
            job,
            prompt,
            [] if generated else vault.prefix(job.user_wallet, prompt.token_ids),
            self._route,
            epoch=self._epoch,
            generated=generated,
            kept=kept,
            expires_in=self._seconds_left() + OPEN_GRACE,
        )
        for node_id, message in messages:
            await messaging.send_to_inbox(
                self._redis, node_id, [message], ttl=self._limits.stream_ttl
            )

    async def _close(self, hops: Collection[Hop], epoch: int) -> None:
        for hop in hops:
            await messaging.send_to_inbox(
                self._redis, hop.node_id, [Close(self._id, epoch)], ttl=self._limits.stream_ttl
            )

    async def _end(self, over: GenerationOver) -> None:
        ttl = self._limits.stream_ttl
        tokens = await live_session.seal(self._redis, self._id, ttl=ttl)
        if over.code is None:
            outcome = await completion.complete(
                self._services,
                self._lease,
                self._model,
                tokens=tokens,
                reason=over.reason,
                first_token_at=await live_session.first_token_at(self._redis, self._id),
            )
        else:
            outcome = await completion.fail(self._services, self._lease, code=over.code)
        await live_session.finish(self._redis, self._id, outcome, ttl=ttl)
        await self._close(self._route, self._epoch)

    def _sender_to(self, node_id: str) -> str:
        """Who sends a node of the route its steps; the last one does to the first."""
        return self._node_ids[self._node_ids.index(node_id) - 1]

    @property
    def _node_ids(self) -> list[str]:
        return [hop.node_id for hop in self._route]

    def _check_time_and_cancel(self, late: str = "deadline_exceeded") -> None:
        if self._lease.cancel_requested:
            raise GenerationOver("cancelled")
        if self._seconds_left() <= 0:
            raise GenerationOver("failed", late)

    def _seconds_left(self) -> int:
        left = self._lease.job.deadline_at - dt.datetime.now(dt.UTC)
        return max(0, math.ceil(left.total_seconds()))

    def _keep(self) -> int:
        """Seconds for which the streams of a running generation are kept."""
        return self._seconds_left() + self._limits.stream_ttl

    async def _tokens(self) -> list[TokenEntry]:
        entries = await live_session.read(self._redis, self._id, token_stream.START)
        return [entry for entry in entries if isinstance(entry, TokenEntry)]

    async def _progress(self) -> int:
        return token_stream.index_of(await live_session.last_entry(self._redis, self._id))
