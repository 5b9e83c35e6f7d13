"""The routes of one generation, and the nodes that it avoids for a while."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from market.catalog.models import Model
from market.geo.distance import Coordinates
from market.jobs.tables import Job
from market.nodes import kv_reservations, live_lookup
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.resources import Resources
from market.routing import tiers
from market.routing.coverage import enough_nodes
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips


class Hop(NamedTuple):
    """A node and its span in a generation's route: a node with another span is another hop."""

    node_id: str
    start_layer: int
    end_layer: int

    @classmethod
    def of(cls, node: Node) -> "Hop":
        return cls(node.node_id, node.start_layer, node.end_layer)


@dataclass(frozen=True, slots=True)
class _Search:
    """What a search found, and among which nodes. ``route``: empty if there was none."""

    live: Sequence[LiveNode]
    request: RouteRequest
    route: Sequence[Node]


class AvoidedDispute(NamedTuple):
    """Nodes of which one has failed the generation, nobody knows which. ``until``: Unix time."""

    node_id: str
    other: str | None
    until: float


@dataclass(slots=True)
class Avoidance:
    """Nodes that one generation avoids. ``nodes``: their ids, and until when (Unix time) each is
    avoided. ``wallets``: of nodes in dispute, by node id, whose other nodes are no better.
    ``barred``: wallets none of whose nodes serves it again."""

    nodes: dict[str, float] = field(default_factory=dict)
    disputes: list[AvoidedDispute] = field(default_factory=list)
    wallets: dict[str, str] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)

    def in_turn(self, nodes: Iterable[Node]) -> Iterator[frozenset[str]]:
        """Nodes to leave out, of those that there are: at first all that are avoided or in dispute;
        then of each dispute one side, and who is in several; at last one side alone. Before
        another node of a wallet may serve for one in dispute, those of other wallets may."""
        now = time.time()
        wallet_of = {n.node_id: n.wallet_address for n in nodes} if self._by_wallet else {}
        disputes = [each for each in self.disputes if each.until > now]
        never = frozenset(node_id for node_id, until in self.nodes.items() if until > now)
        never |= {node_id for node_id, wallet in wallet_of.items() if wallet in self.barred}
        ones = {each.node_id for each in disputes}
        others = {each.other for each in disputes if each.other is not None}
        count = Counter(n for each in disputes for n in {each.node_id, each.other})
        several = {node_id for node_id, times in count.items() if node_id and times > 1}
        if disputes and self.wallets:
            for side in (ones | others, several | ones, ones):
                wallets = {self.wallets.get(node_id) for node_id in side}
                yield never | side | {n for n, wallet in wallet_of.items() if wallet in wallets}
        yield never | ones | others
        if disputes:
            yield from (never | several | side for side in (ones, others))
            yield from (never | side for side in (ones, others) if several)

    @property
    def _by_wallet(self) -> bool:
        return bool(self.wallets or self.barred)


class RouteFinder:
    """The routes of one generation."""

    def __init__(self, resources: Resources, model: Model, job: Job, avoidance: Avoidance) -> None:
        self._redis = resources.redis
        self._skips = resources.skips
        self._model = model
        self._request = RouteRequest(
            model.layers,
            positions=job.prompt_tokens + job.max_tokens,
            price=job.price_per_token_far,
            tier_rule=tiers.tier_rule(job.tier),
            near=_location(job),
        )
        self._avoidance = avoidance
        self._last_search: _Search | None = None

    def avoid(self, node_id: str, seconds: float) -> None:
        """Leave a node out of this generation's routes for ``seconds``."""
        self._avoidance.nodes[node_id] = time.time() + seconds

    def avoid_dispute(self, node_id: str, other: str | None, seconds: float) -> None:
        """Leave two nodes, of which one has failed the generation, out of its routes for
        ``seconds``; or one of them, where there is no route without both, at first the node itself.
        ``other``: none if there is no other; then the node serves where no other can."""
        self._avoidance.disputes.append(AvoidedDispute(node_id, other, time.time() + seconds))

    def avoid_wallets(self, wallets: Mapping[str, str]) -> None:
        """Leave out with a node that is in dispute all others of its wallet, as far as there is a
        route without them. ``wallets``: by node id."""
        self._avoidance.wallets.update(wallets)

    async def bar(self, wallets: Collection[str], serving: Collection[Hop]) -> bool:
        """Use no node of these wallets again; whether there is a route without them now."""
        self._avoidance.barred.update(wallets)
        return await self.find(serving) is not None

    async def find(self, serving: Collection[Hop]) -> list[Node] | None:
        """The cheapest route now; none if there is none.

        Args:
            serving: Hops of the generation's current route. A node that still serves such a hop's
                span costs nothing.
        """
        live = await live_lookup.live_nodes(self._redis, self._model.id)
        available = [live_node.node for live_node in live if live_node.available]
        free_kv = await kv_reservations.free_kv_of(self._redis, [n.node_id for n in available])
        request = replace(
            self._request,
            free_kv=free_kv,
            prefer={node.node_id for node in available if Hop.of(node) in serving},
        )
        route = None
        for avoid in self._avoidance.in_turn([each.node for each in live]):
            request = replace(request, avoid=avoid)
            route = cheapest_route(live, request) if enough_nodes(self._model, live) else None
            if route is not None:
                break
        self._last_search = _Search(live, request, route or [])
        return route

    async def count_skips(self) -> None:
        """Count why the other nodes are not on the route that was found last, or why there was no
        route; as often as :class:`SkipCounter` allows."""
        search, self._last_search = self._last_search, None
        if search is not None and self._skips.due:
            reasons = explain_skips(search.live, search.request, search.route)
            await self._skips.count(reasons)

    async def reserve(self, route: Sequence[Node], serving: Collection[Hop]) -> bool:
        """Reserve KV cache for the generation on a route's nodes, except those of ``serving``,
        which have reserved it already; false if a node has too little."""
        new = [node.node_id for node in route if Hop.of(node) not in serving]
        return await kv_reservations.reserve_kv(self._redis, new, self._request.positions)


def _location(job: Job) -> Coordinates | None:
    """Where the job's user is; none if that is not known."""
    if job.near_latitude is None or job.near_longitude is None:
        return None
    return Coordinates(job.near_latitude, job.near_longitude)
