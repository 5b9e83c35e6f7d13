"""A node of a route sends what is right by itself again and again, until its neighbour's inbox
overflows, or the supervisor's events, or the readers' tokens."""

import pytest
import redis
import structlog
from structlog.testing import LogCapture

from mesh import redis_keys
from mesh.relay import PushAck
from mesh.wire import GenerationRefused, Message, Pong, PrefixCached, Token
from mesh.wire.limits import EVENT_BURST, MAX_DRAFT_TOKENS
from tests.support.gateway.relay import (
    CAPACITY,
    Node,
    Replica,
    begin,
    events,
    inbox,
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
