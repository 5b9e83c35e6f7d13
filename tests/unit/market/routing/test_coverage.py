"""How long a generation the live nodes have KV caches for."""

from market.routing.coverage import longest_servable
from market.routing.request import RouteRequest
from tests.unit.market.routing.test_route_search import live, node

REQUEST = RouteRequest(6)


def test_the_longest_generation_fits_every_node_of_one_route() -> None:
    small, large = node(0, 3, kv=100), node(0, 3, kv=300)
    rest, edgeless = node(3, 6, kv=200), node(0, 3, kv=500, edge=False)
    assert longest_servable(live([small, large, rest, edgeless]), REQUEST) == 200
    assert longest_servable(live([small, rest]), REQUEST) == 100
    assert longest_servable(live([small]), REQUEST) == 0
    assert small.could_hold(100)
    assert not small.could_hold(101)
    assert node(0, 6, kv=0).could_hold(10**6)


def test_the_longest_generation_is_that_of_nodes_that_may_serve() -> None:
    large, plain = node(0, 6, name="large", kv=300), node(0, 6, name="plain", kv=100)
    request = RouteRequest(6, tier_rule=lambda each: each is plain)
    assert longest_servable(live([large, plain]), request) == 100
