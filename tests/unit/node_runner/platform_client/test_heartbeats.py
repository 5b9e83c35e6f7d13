"""A registered node's heartbeats, against a server that answers as it is told."""

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from mesh.node_api import HEARTBEAT_PATH, Heartbeat, HeartbeatReply, RegistrationReply
from node_runner.platform_client.errors import NodeNotRegistered, NodeSuperseded, PlatformError
from node_runner.platform_client.heartbeats import Heartbeats
from tests.support.gateway.platform_server import (
    ACKNOWLEDGED,
    REGISTERED,
    TEMPORARY,
    Answer,
    PlatformServer,
    problem,
)

PATIENCE = 10.0
NODE = RegistrationReply(**REGISTERED)


class Listener:
    """What a node is told by its heartbeats."""

    def __init__(self) -> None:
        self.replies: list[HeartbeatReply] = []
        self.ends: list[PlatformError] = []


Start = Callable[..., Listener]


@pytest.fixture
def start(http: httpx.Client) -> Iterator[Start]:
    running: list[Heartbeats] = []

    def begin(
        measure: Callable[[], Heartbeat] = Heartbeat, node: RegistrationReply = NODE
    ) -> Listener:
        listener = Listener()
        heartbeats = Heartbeats(
            http,
            node,
            measure=measure,
            on_reply=listener.replies.append,
            on_end=listener.ends.append,
        )
        running.append(heartbeats)
        heartbeats.start()
        return listener

    yield begin
    for heartbeats in running:
        heartbeats.deregister()
        heartbeats.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeats_outlive_whatever_may_pass(server: PlatformServer, start: Start) -> None:
    """From the first one on, which is not waited for."""
    refused = Answer(403, problem("forbidden"))
    server.answers[HEARTBEAT_PATH] = [*TEMPORARY.values(), refused, Answer(200, ACKNOWLEDGED)]
    listener = start()
    until(lambda: len(listener.replies) > 1)
    assert listener.replies[0] == HeartbeatReply(start_layer=2, end_layer=4, should_rebalance=False)
    assert listener.replies[0].span == (2, 4)
    assert listener.ends == []


def test_heartbeats_outlive_a_figure_that_cannot_be_had(
    server: PlatformServer, start: Start
) -> None:
    figures = iter([ZeroDivisionError("no step yet")])

    def measure() -> Heartbeat:
        for error in figures:
            raise error
        return Heartbeat()

    listener = start(measure)
    until(lambda: listener.replies)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "token_invalid", NodeNotRegistered),
        (404, "node_not_found", NodeNotRegistered),
        (409, "node_superseded", NodeSuperseded),
    ],
)
def test_a_node_that_is_none_any_more_is_told_once(
    server: PlatformServer, start: Start, status: int, code: str, kind: type[PlatformError]
) -> None:
    """Also by the first heartbeat, which comes minutes after the registration."""
    server.answers[HEARTBEAT_PATH] = [Answer(status, problem(code))]
    listener = start()
    until(lambda: listener.ends)
    time.sleep(0.2)  # four heartbeats
    assert [type(each) for each in listener.ends] == [kind]
    assert server.paths.count(HEARTBEAT_PATH) == 1
    assert listener.replies == []


def test_after_a_trouble_the_next_heartbeat_comes_early(
    server: PlatformServer, start: Start
) -> None:
    server.answers[HEARTBEAT_PATH].insert(0, TEMPORARY["an outage"])
    listener = start(node=RegistrationReply(**{**REGISTERED, "heartbeat_interval_sec": 60}))
    until(lambda: listener.replies)


def test_the_deregistration_is_the_last_that_the_platform_hears(
    server: PlatformServer, http: httpx.Client
) -> None:
    listener = Listener()
    heartbeats = Heartbeats(
        http,
        NODE,
        measure=Heartbeat,
        on_reply=listener.replies.append,
        on_end=listener.ends.append,
    )
    heartbeats.start()
    until(lambda: listener.replies)
    heartbeats.deregister()
    heartbeats.join()
    healthy = [request.body["is_healthy"] for request in server.requests]
    assert healthy == [True] * (len(healthy) - 1) + [False]
    assert {request.token for request in server.requests} == {"the node's token"}
