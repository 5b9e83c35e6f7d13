"""Strangers register nodes by the thousand and take every connection of a process, so that no node
that serves finds one."""

import contextlib
from collections.abc import Callable

import httpx
import pytest
import redis
from websockets.exceptions import InvalidStatus

from market.settings import Settings
from mesh import relay
from mesh.relay import Hello, InboxDelivery
from tests.support.gateway.api import OTHER_WALLET, PROVIDER_WALLET
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    dial,
    on_route,
    replica,
    wait_until,
)


def status(at: Replica, node_id: str, wallet: str = PROVIDER_WALLET) -> int:
    """What a node gets that connects."""
    try:
        dial(at, node_id, wallet=wallet).close()
    except InvalidStatus as refused:
        return refused.response.status_code
    return 101


def hello(at: Replica, node_id: str) -> int:
    """What a node gets that polls."""
    body = relay.bundle([relay.encode(Hello(relay.VERSION, "session", ""))])
    headers = bearer(at.token(node_id, wallet=PROVIDER_WALLET))
    url = at.url + relay.EXCHANGE_PATH
    return httpx.post(url, content=body, headers=headers, timeout=PATIENCE).status_code


def test_nodes_on_no_route_leave_room_for_others(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    settings = make_settings(relay={"max_connections": 8, "kept_for_routes": 0.5})
    with replica(settings) as here, contextlib.ExitStack() as several:
        strangers = [
            several.enter_context(Node(here, f"stranger_{number}", wallet=OTHER_WALLET))
            for number in range(4)
        ]
        assert status(here, "stranger_5") == 503
        assert hello(here, "stranger_5") == 503
        on_route(client, "serving")
        assert hello(here, "serving") == 200
        serving = several.enter_context(Node(here, "serving", wallet=PROVIDER_WALLET))
        serving.keep_alive()
        assert status(here, "stranger_5") == 503
        # A stranger that is chosen for a route leaves his place to another.
        on_route(client, "stranger_0")
        strangers[0].receive(InboxDelivery)
        wait_until(lambda: status(here, "stranger_5") == 101)


def test_nodes_on_routes_fill_a_process_up(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    settings = make_settings(relay={"max_connections": 4, "kept_for_routes": 0.5})
    names = [f"serving_{number}" for number in range(5)]
    on_route(client, *names)
    with replica(settings) as here, contextlib.ExitStack() as several:
        for name in names[:4]:
            several.enter_context(Node(here, name, after="0-0")).receive(InboxDelivery)
        assert status(here, names[4]) == 503


@pytest.mark.parametrize("ask", [status, hello])
def test_a_wallet_takes_so_many_and_no_more(
    make_settings: Callable[..., Settings],
    client: redis.Redis,
    ask: Callable[[Replica, str], int],
) -> None:
    settings = make_settings(relay={"max_connections_per_wallet": 3})
    with replica(settings) as here, contextlib.ExitStack() as several:
        for number in range(3):
            name = f"mine_{number}"
            several.enter_context(Node(here, name, wallet=PROVIDER_WALLET)).keep_alive()
        assert ask(here, "mine_4") == 429
        assert status(here, "other", OTHER_WALLET) == 101
