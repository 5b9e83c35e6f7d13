"""Nodes all tell different sizes of their caches, and a stranger asks for more than any of them
holds, so that the refusal's sentence takes a route search for each."""

import pytest

from market.nodes.node import Node
from market.routing import coverage
from market.routing.request import RouteRequest
from tests.support.market.routes import live, node

NODES = 1000


def test_a_refusal_takes_few_searches_however_many_nodes_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = 0
    search = coverage.cheapest_route

    def count(*arguments: object) -> list[Node] | None:
        nonlocal searches
        searches += 1
        return search(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coverage, "cheapest_route", count)
    nodes = [node(0, 3, name=f"first{kv}", kv=kv) for kv in range(1, NODES, 2)]
    nodes += [node(3, 6, name=f"last{kv}", kv=kv) for kv in range(2, NODES // 2 + 1, 2)]
    assert coverage.longest_servable(live(nodes), RouteRequest(6)) == NODES // 2
    assert searches <= NODES.bit_length()
