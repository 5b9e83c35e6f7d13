"""The routes through a model's nodes that are free now, given away one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from redis.asyncio import Redis

from market.catalog.models import Model
from market.nodes import kv_reservations, live_lookup
from market.nodes.live_lookup import LiveNode
from market.routing import tiers
from market.routing.coverage import enough_nodes
from market.routing.eligibility import SkipReason
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips
from workers.dispatch.waiting_jobs import WaitingJob
from workers.supervisor.route_finder import Hop


class FreeRoutes:
    """A model's live nodes and their free KV at one moment.

    ``refused``: the first job for which there was no route; none if each got one.
    """

    def __init__(self, model: Model, live: Sequence[LiveNode], free_kv: dict[str, int]) -> None:
        self._model = model
        self._live = live
        self._free_kv = free_kv
        self._enough = enough_nodes(model, live)
        self._hops = {Hop.of(each.node) for each in live if each.available}
        self._least_refused: dict[tuple[RouteRequest, ...], int] = {}
        self.refused: WaitingJob | None = None

    @classmethod
    async def read(cls, redis: Redis, model: Model) -> "FreeRoutes":
        """The routes that are free now."""
        live = await live_lookup.live_nodes(redis, model.id)
        available = [each.node.node_id for each in live if each.available]
        return cls(model, live, await kv_reservations.free_kv_of(redis, available))

    def take(self, job: WaitingJob) -> bool:
        """Whether there is a route for a job; if so, it is not there for the next any more.

        A job that asks for as much as one that was refused, or more, is refused without a search:
        however many wait, there are few searches.
        """
        alike = self._requests(job)
        if job.positions >= self._least_refused.get(alike, job.positions + 1):
            return False
        for request in alike if self._enough else ():
            route = cheapest_route(self._live, self._now(request, job))
            if route is not None:
                for node in route:
                    if node.node_id not in request.prefer:
                        self._free_kv[node.node_id] -= job.positions
                return True
        self._least_refused[alike] = job.positions
        self.refused = self.refused or job
        return False

    def explain(self, job: WaitingJob) -> Mapping[str, SkipReason]:
        """Why there was no route for a job, by node."""
        return explain_skips(self._live, self._now(self._requests(job)[0], job), [])

    def _now(self, request: RouteRequest, job: WaitingJob) -> RouteRequest:
        return replace(request, positions=job.positions, free_kv=self._free_kv)

    def _requests(self, job: WaitingJob) -> tuple[RouteRequest, ...]:
        """What a job asks of its route, without how much: first what it would rather have."""
        request = RouteRequest(
            self._model.layers,
            price=job.price,
            tier_rule=tiers.tier_rule(job.tier),
            prefer=frozenset(hop.node_id for hop in job.state.hops if hop in self._hops),
        )
        nodes = [each.node for each in self._live]
        return tuple(replace(request, avoid=avoid) for avoid in job.state.avoidance.in_turn(nodes))
