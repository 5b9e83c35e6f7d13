"""A node of a route sends what is right by itself again and again, until its neighbour's inbox
overflows, or the supervisor's events, or the readers' tokens."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
import structlog
from structlog.testing import LogCapture

from api.relay.pipelined_connection import Command, PipelinedConnection
from market.settings import Settings
from mesh import redis_keys
from mesh.relay import MAX_ITEMS, PushAck
from mesh.wire import GenerationRefused, Message, Pong, PrefixCached, Step, Steps, Token
from mesh.wire.limits import EVENT_BURST, MAX_DRAFT_TOKENS
from tests.support.gateway.relay import (
    CAPACITY,
    Node,
    Replica,
    begin,
    events,
    inbox,
    replica,
    steps,
)


def flood(node: Node, to: str, message: Message, times: int) -> list[PushAck]:
    return [node.push((to, message)) for _ in range(times)]


def refused(answers: list[PushAck]) -> list[str]:
    return [refusal.code for answer in answers for refusal in answer.refused]


def rows_in(client: redis.Redis, node_id: str) -> int:
    return sum(message.rows for message in inbox(client, node_id))  # type: ignore[union-attr]


def test_a_prefill_that_comes_again_and_again(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        # What a new node needs beside it, once.
        answers = flood(node, "middle", steps(rows=100, wanted=0, replay=True), 1)
        answers += flood(node, "middle", steps(rows=50, wanted=0), 10)
    assert refused(answers) == ["flood"] * 8
    assert rows_in(client, "middle") == 2 * CAPACITY
    assert GenerationRefused("gen", 1, "edge", "flood") in events(client)


def test_a_replay_that_comes_again_and_again(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        answers = flood(node, "middle", steps(rows=50, wanted=0, replay=True), 10)
    assert refused(answers) == ["flood"] * 8
    assert rows_in(client, "middle") == CAPACITY


def test_a_decode_step_that_comes_again_and_again(here: Replica, client: redis.Redis) -> None:
    begin(client)
    rows = 1 + MAX_DRAFT_TOKENS
    with Node(here, "middle") as node:
        answers = flood(node, "last", steps(rows=rows, wanted=rows), 2 * CAPACITY)
        assert refused(answers) == ["flood"] * CAPACITY
    assert rows_in(client, "last") == rows * CAPACITY


def test_decode_steps_that_no_tokens_follow(here: Replica, client: redis.Redis) -> None:
    begin(client, capacity=100_000)
    with Node(here, "last") as node:
        answers = flood(node, "edge", steps(rows=500, wanted=500), 40)
        assert refused(answers)
    assert rows_in(client, "edge") < 8_000
    # Each token lets a step follow.
    client.xadd(redis_keys.tokens("gen"), {"i": 1, "t": "x"}, id="50000-0")
    begin(client, epoch=2, capacity=100_000)
    with Node(here, "last") as node:
        assert not refused(flood(node, "edge", steps(epoch=2, rows=500, wanted=500), 40))


def test_every_honest_step_passes(here: Replica, client: redis.Redis) -> None:
    """A replay, the whole prompt, and each token with draft tokens that are all rejected."""
    begin(client)
    rows = 1 + MAX_DRAFT_TOKENS
    with Node(here, "middle") as node:
        replayed = [steps(position=at, rows=20, wanted=0, replay=True) for at in range(0, 80, 20)]
        prefilled = [steps(position=at, rows=20, wanted=0) for at in range(0, 60, 20)]
        decoded = [steps(position=at, rows=rows, wanted=rows) for at in range(60, 100 - rows)]
        for step in [*replayed, *prefilled, *decoded]:
            assert node.push(("last", step)).refused == []


def test_the_next_epoch_is_counted_anew(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        assert refused(flood(node, "middle", steps(rows=100, wanted=0), 2)) == ["flood"]
        begin(client, epoch=2)
        assert not refused(flood(node, "middle", steps(epoch=2, rows=100, wanted=0), 1))


def test_events_without_end(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "middle") as node, Node(here, "last") as bystander:
        answers = flood(node, "", Pong("gen", 1, "middle", 5), 200)
        assert "flood" in refused(answers)
        assert bystander.push(("", Pong("gen", 1, "last", 5))).refused == []
    # What the relay says of it is counted, too.
    assert client.xlen(redis_keys.events("gen")) < 4 * EVENT_BURST


def test_prefixes_without_end(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "last") as node:
        flood(node, "edge", PrefixCached("gen", 1, 2, 8), 200)
    assert client.xlen(redis_keys.inbox("edge")) < 2 * EVENT_BURST


def test_broken_rules_without_end(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "middle") as node:
        assert len(refused(flood(node, "edge", steps(), 200))) == 200
    assert client.xlen(redis_keys.events("gen")) <= EVENT_BURST


def test_the_log_does_not_fill_up(
    here: Replica, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LogCapture()
    monkeypatch.setattr(
        "api.relay.forwarder.log", structlog.wrap_logger(None, processors=[written])
    )
    begin(client)
    with Node(here, "middle") as node:
        flood(node, "edge", steps(), 100)
    assert [entry["code"] for entry in written.entries] == ["wrong_receiver"]


def test_tokens_without_end(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        answers = flood(node, "", Token("gen", 1, 0, 7, "x"), 3 * CAPACITY)
        assert refused(answers) == ["flood"] * CAPACITY


def test_tokens_that_are_too_long_together(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        written = [node.push(("", Token("gen", 1, at, 7, "x" * 4096))) for at in range(CAPACITY)]
        assert "flood" in refused(written)
    kept = sum(len(fields[b"t"]) for _, fields in client.xrange(redis_keys.tokens("gen")))
    assert kept < 2 * 256 * CAPACITY + 2 * 4096


def made_up(messages: int) -> list[tuple[str, Message]]:
    """Steps of as many generations as so many messages have, none of which is there."""
    return [
        (
            "middle",
            Steps(
                [Step(f"{m:x}_{i:x}", 0, 0, 1, 1, False) for i in range(256)],
                "int8",
                1,
                bytes(3 * 256),
            ),
        )
        for m in range(messages)
    ]


def test_generations_that_nobody_has_begun_are_looked_up_few_at_a_time(
    here: Replica, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame of 130 KB names nine thousand."""
    calls: list[int] = []
    call = PipelinedConnection.call

    async def counted(self: PipelinedConnection, commands: Sequence[Command]) -> list[Any]:
        calls.append(len(commands))
        return await call(self, commands)

    monkeypatch.setattr(PipelinedConnection, "call", counted)
    with Node(here, "edge") as node:
        assert len(node.push(*made_up(12)).refused) == MAX_ITEMS
    assert sum(calls) > 2 * 12 * 256
    assert max(calls) <= 2 * 256


def test_generations_that_nobody_has_begun_count_as_messages(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    slow = make_settings(relay={"messages_per_second": 200})
    with replica(slow) as here, Node(here, "edge") as node:
        began = time.monotonic()
        node.push(*made_up(3))
        assert time.monotonic() - began > 1.5  # two seconds' worth come at once


def test_a_step_that_was_refused_is_there_when_its_epoch_begins(
    here: Replica, client: redis.Redis
) -> None:
    """Also if a neighbour has just named it."""
    with Node(here, "middle") as liar, Node(here, "edge") as node:
        assert refused([liar.push(("last", steps()))]) == ["epoch_over"]
        begin(client)
        assert node.push(("middle", steps())).refused == []


def test_the_steps_of_many_generations_pass(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    """Three messages of 256 live generations, at once and without a wait."""
    names = [f"gen_{number}" for number in range(256)]
    for name in names:
        begin(client, name=name)
    together = Steps([Step(n, 1, 0, 1, 1, False) for n in names], "float32", 2, bytes(8 * 256))
    with replica(make_settings()) as here, Node(here, "edge") as node:
        for _ in range(3):
            assert node.push(*[("middle", together)] * 3).refused == []
    assert client.xlen(redis_keys.inbox("middle")) == 9


def test_a_generation_beside_a_wrong_one_is_not_held_against_its_sender(
    here: Replica, client: redis.Redis
) -> None:
    """Who lets one generation of a node flood would take all the others from it."""
    begin(client)
    begin(client, name="bystander")
    both = [Step("gen", 1, 0, 1, 0, False), Step("bystander", 1, 0, 1, 0, False)]
    with Node(here, "edge") as node:
        flood(node, "middle", steps(rows=CAPACITY, wanted=0), 1)
        ack = node.push(("middle", Steps(both, "float32", 2, bytes(16))))
        assert sorted(refused([ack])) == ["flood", "in_bad_company"]
    assert events(client) == [GenerationRefused("gen", 1, "edge", "flood")]
    assert events(client, "bystander") == []
