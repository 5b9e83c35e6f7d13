"""The state of one supervision: job, lease, epoch, route, events, tokens, time left."""

import datetime as dt
import math
import time
from collections.abc import Sequence

from sqlalchemy import select

from market.jobs import live_session, messaging
from market.jobs.admission import throughput
from market.jobs.live_session import TokenEntry
from market.jobs.tables import EndReason, RouteHop
from market.resources import Resources
from mesh import token_stream
from mesh.wire import Cancel, Ended, Pong, PrefixReused
from workers.supervisor.claims import Claim, claim_of
from workers.supervisor.errors import GenerationOver
from workers.supervisor.lease import Lease
from workers.supervisor.route_finder import Hop, RouteFinder
from workers.supervisor.waiting_state import WaitingState

COUNT_SECONDS = 1.0
"""Seconds between two counts of what one generation has computed, at least."""


class Supervision:
    """The state of one supervision, which a successor rebuilds from Postgres and Redis.

    ``epoch``: the newest that was claimed. ``route``: the hops that serve the generation, none
    before the first epoch. ``speakers``: ids of the nodes of the epoch's route, which may report
    as long as the epoch lasts, also while the next route is searched. ``first_token``: tokens when
    the epoch began. ``positions``: the most that each node has said it computed in this epoch.
    ``cached``: tokens at the prompt's beginning that all nodes copied from their caches.
    ``drafts``: draft tokens that were accepted and rejected, once the edge has said so.
    ``state``: what a successor cannot rebuild, and is told if the generation waits for a route.
    """

    def __init__(self, resources: Resources, lease: Lease) -> None:
        job = lease.job
        self.resources = resources
        self.redis = resources.redis
        self.generation_settings = resources.settings.generation
        self.lease = lease
        self.job = job
        self.id = job.request_id
        self.model = resources.catalog.get(job.model_id)
        self.state = WaitingState.from_json(
            None if job.waiting_since is None else job.waiting_state
        )
        self.route_finder = RouteFinder(resources, self.model, job, self.state.avoidance)
        self.epoch = job.epoch
        self.route: list[Hop] = []
        self.speakers: list[str] = []
        self.first_token = 0
        self.positions = self.state.positions
        self.cached = job.cached_prompt_tokens
        self.drafts = (0, 0)
        self._counted: int | None = None
        self._count_at = 0.0

    @property
    def has_waited(self) -> bool:
        """Whether the generation has waited for a route until now, without a supervisor."""
        return self.job.waiting_since is not None

    @property
    def node_ids(self) -> list[str]:
        """The route's nodes in the order of their layers, the edge's first."""
        return [hop.node_id for hop in self.route]

    async def load_route(self) -> int | None:
        """Take over the newest route that a predecessor recorded, and return the epoch that it was
        recorded for; none if no route was. Of a generation that has waited, the route is what has
        kept its KV cache."""
        if self.epoch == 0:
            return None
        async with self.resources.sessions() as db:
            rows = await db.execute(
                select(
                    RouteHop.epoch,
                    RouteHop.first_token,
                    RouteHop.node_id,
                    RouteHop.start_layer,
                    RouteHop.end_layer,
                )
                .where(RouteHop.session_id == self.job.id)
                .order_by(RouteHop.epoch.desc(), RouteHop.stage)
            )
            hops = rows.all()
        newest = [hop for hop in hops if hop.epoch == hops[0].epoch]
        self.route = [Hop(hop.node_id, hop.start_layer, hop.end_layer) for hop in newest]
        self.speakers = self.node_ids
        self.first_token = max((hop.first_token for hop in newest), default=0)
        if self.has_waited:
            self.route = self.state.hops
        return hops[0].epoch if hops else None

    async def wallets(self) -> dict[str, str]:
        """Whose the nodes of this epoch's route are, by node id."""
        async with self.resources.sessions() as db:
            rows = await db.execute(
                select(RouteHop.node_id, RouteHop.wallet_address).where(
                    RouteHop.session_id == self.job.id, RouteHop.epoch == self.epoch
                )
            )
            return {row.node_id: row.wallet_address for row in rows}

    async def read_events(self, wait: float) -> list[Claim]:
        """What was claimed of this epoch since the last call, by those who may; waits up to
        ``wait`` seconds if there is nothing yet. Every loop of a supervision comes by here: that is
        its progress.

        Raises:
            GenerationOver: the user has cancelled.
        """
        self.state.last_event, events = await messaging.read_events(
            self.redis, self.id, self.state.last_event, wait=wait
        )
        self.lease.progressed()
        claims = [claim_of(event, self.speakers) for event in events]
        current = [each for each in claims if each is not None and each.epoch == self.epoch]
        self._note(current)
        if any(isinstance(claim, Cancel) for claim in claims):
            raise GenerationOver("cancelled")
        return current

    def _note(self, claims: Sequence[Claim]) -> None:
        """Keep what nodes report of the prompt, for the bill, and of drafts, for the user."""
        for claim in claims:
            match claim:
                case Pong():
                    known = self.positions.get(claim.node_id, 0)
                    self.positions[claim.node_id] = max(known, claim.positions)
                case PrefixReused():
                    said = min(claim.positions, self.job.prompt_tokens)
                    self.cached = max(self.cached, said)
                case Ended():
                    self.drafts = claim.accepted_drafts, claim.rejected_drafts

    async def check_ended(self, event: Ended) -> None:
        """Check what the edge says of the end against what readers have.

        Raises:
            GenerationOver: readers have all the tokens that the edge wrote.
        """
        if await self.token_count() >= event.count:
            # An edge may write any word, and the reason is kept.
            reason: EndReason = "stop" if event.reason == "stop" else "length"
            raise GenerationOver(reason, tokens=event.count)

    async def count_progress(self, tokens: int, *, now: bool = False) -> None:
        """Count what was computed since this was last called toward the model's throughput, as
        often as :data:`COUNT_SECONDS` allows, or ``now``. What of the prompt was copied from caches
        was not computed. ``tokens``: how many readers have."""
        if self._counted is None:
            self._counted = 0 if self.job.epoch == 0 else tokens
        if tokens <= self._counted or (not now and time.monotonic() < self._count_at):
            return
        prompt = 0 if self._counted else self.job.prompt_tokens - self.cached
        await throughput.count(self.redis, self.model.id, prompt + tokens - self._counted)
        self._counted, self._count_at = tokens, time.monotonic() + COUNT_SECONDS

    def check_time_and_cancel(self, late: str = "deadline_exceeded") -> None:
        """Check whether the generation may go on.

        Args:
            late: Code of the failure if the deadline is over.

        Raises:
            GenerationOver: the user has cancelled, or the deadline is over.
        """
        if self.lease.cancel_requested:
            raise GenerationOver("cancelled")
        if self.seconds_left() <= 0:
            raise GenerationOver("failed", late)

    async def check_cancelled(self) -> None:
        """Check the live record, which says at once what Postgres may not say yet.

        Raises:
            GenerationOver: the user has cancelled.
        """
        if (await live_session.progress(self.redis, self.id, ())).cancelled:
            raise GenerationOver("cancelled")

    def seconds_left(self) -> int:
        """Seconds until the deadline, rounded up; 0 after it."""
        left = self.job.deadline_at - dt.datetime.now(dt.UTC)
        return max(0, math.ceil(left.total_seconds()))

    def live_ttl(self) -> int:
        """Seconds for which the live record and the streams of a running generation are kept."""
        return self.seconds_left() + self.generation_settings.stream_ttl

    async def tokens(self) -> list[TokenEntry]:
        """All tokens that readers have."""
        return await live_session.tokens(self.redis, self.id)

    async def token_count(self) -> int:
        """How many tokens readers have."""
        return token_stream.token_count_at(await live_session.last_entry_id(self.redis, self.id))
