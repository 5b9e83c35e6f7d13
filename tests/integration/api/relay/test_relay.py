"""The relay, frame by frame: what it forwards, and what it refuses."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgpack
import pytest
import redis
import structlog
import uvicorn
from prometheus_client import REGISTRY
from structlog.testing import LogCapture
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from api.relay.connection_slots import MOST_OF_NODE
from api.relay.forwarder import MAX_EVENTS
from market.settings import Settings
from mesh import redis_keys, relay
from mesh.relay import (
    Hello,
    InboxDelivery,
    KeepAlive,
    KeepAliveAck,
    OutgoingMessage,
    Poll,
    Push,
    PushAck,
    Superseded,
    Welcome,
)
from mesh.wire import (
    Close,
    Ended,
    GenerationRefused,
    Message,
    OpenEdge,
    Pong,
    PrefixCached,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    Token,
)
from stack.servers import Postgres, gateway_command
from tests.support.api import WALLET, shared_database
from tests.support.relay import (
    CAPACITY,
    PATIENCE,
    Node,
    Replica,
    begin,
    events,
    inbox,
    put,
    replica,
    sent,
    steps,
    wait_until,
)


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def settings(make_settings: Callable[..., Settings], client: redis.Redis) -> Settings:
    return make_settings()


@pytest.fixture
def here(settings: Settings) -> Iterator[Replica]:
    with replica(settings) as started:
        yield started


def refusals(code: str) -> float:
    return REGISTRY.get_sample_value("far_relay_refusals_total", {"code": code}) or 0.0


GOOD = {
    "step to the next node": ("middle", "last", steps()),
    "result to the edge": ("last", "edge", steps()),
    "prefill": ("edge", "middle", steps(rows=64, wanted=0)),
    "replay": ("edge", "middle", steps(rows=64, wanted=0, replay=True)),
    "ready": ("last", "edge", PrefixCached("gen", 1, 2, 8)),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_the_route_says_is_forwarded(here: Replica, client: redis.Redis, name: str) -> None:
    sender, to, message = GOOD[name]
    begin(client)
    with Node(here, sender) as node:
        assert node.push((to, message)).refused == []
    assert inbox(client, to) == [message]


def test_tokens_and_events_of_the_edge_get_to_readers(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "edge") as node:
        written = [("", Token("gen", 1, 0, 7, "first")), ("", Token("gen", 1, 1, 8, "second"))]
        assert node.push(*written, ("", Ended("gen", 1, "stop", 2))).refused == []
    assert [fields[b"t"] for _, fields in client.xrange(redis_keys.tokens("gen"))] == [
        b"first",
        b"second",
    ]
    assert events(client) == [Ended("gen", 1, "stop", 2)]


def test_nodes_answer_pings_and_blame_their_senders(here: Replica, client: redis.Redis) -> None:
    begin(client)
    told: list[Message] = [
        Pong("gen", 1, "middle", 5),
        GenerationRefused("gen", 1, "edge", "not_finite"),
    ]
    with Node(here, "middle") as node:
        assert node.push(*(("", message) for message in told)).refused == []
    assert events(client) == told


BAD: dict[str, tuple[str, str, Message, str]] = {
    "a stranger's": ("stranger", "middle", steps(), "not_on_route"),
    "a stranger's token": ("stranger", "", Token("gen", 1, 0, 7, "x"), "not_on_route"),
    "past the next node": ("edge", "last", steps(), "wrong_receiver"),
    "to a stranger": ("edge", "stranger", steps(), "wrong_receiver"),
    "back": ("middle", "edge", steps(), "wrong_receiver"),
    "to nobody": ("edge", "", steps(), "wrong_receiver"),
    "of an epoch that is over": ("edge", "middle", steps(epoch=0), "epoch_over"),
    "of an epoch to come": ("edge", "middle", steps(epoch=2), "epoch_over"),
    "of no generation": ("edge", "middle", steps(name="none"), "epoch_over"),
    "too wide": ("edge", "middle", steps(width=3), "wrong_width"),
    "beyond the end": ("edge", "middle", steps(position=CAPACITY), "out_of_capacity"),
    "too long": ("edge", "middle", steps(rows=513, wanted=0), "wrong_rows"),
    "rows nobody wants": ("last", "edge", steps(rows=2), "wrong_rows"),
    "a replay to the edge": ("last", "edge", steps(replay=True), "wrong_stage"),
    "ready, of another stage": ("last", "edge", PrefixCached("gen", 1, 1, 8), "wrong_stage"),
    "ready, to another": ("last", "middle", PrefixCached("gen", 1, 2, 8), "wrong_receiver"),
    "ready with too much": ("last", "edge", PrefixCached("gen", 1, 2, 101), "out_of_capacity"),
    "a token not of the edge": ("middle", "", Token("gen", 1, 0, 7, "x"), "not_the_edge"),
    "a token of an old epoch": ("edge", "", Token("gen", 0, 0, 7, "x"), "epoch_over"),
    "a token beyond the end": ("edge", "", Token("gen", 1, 100, 7, "x"), "out_of_capacity"),
    "a long token": ("edge", "", Token("gen", 1, 0, 7, "x" * 5000), "too_long"),
    "the end, not of the edge": ("last", "", Ended("gen", 1, "stop", 1), "not_the_edge"),
    "the end, for a reason": ("edge", "", Ended("gen", 1, "bored", 1), "malformed"),
    "blame for a gap": ("middle", "", GenerationRefused("gen", 1, "edge", "gap"), "wrong_node"),
    "blame of the next node": (
        "edge",
        "",
        GenerationRefused("gen", 1, "middle", "gap"),
        "wrong_node",
    ),
    "blame at length": ("edge", "", GenerationRefused("gen", 1, "edge", "x" * 65), "too_long"),
    "another's pong": ("edge", "", Pong("gen", 1, "middle", 1), "wrong_node"),
    "a pong to a node": ("edge", "middle", Pong("gen", 1, "edge", 1), "malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_route_does_not_say_is_refused(
    here: Replica, client: redis.Redis, name: str
) -> None:
    sender, to, message, code = BAD[name]
    begin(client)
    before = refusals(code)
    with Node(here, sender) as node:
        [refusal] = node.push((to, message)).refused
    known = message.steps[0] if isinstance(message, Steps) else message
    assert refusal == (known.request_id, known.epoch, code)
    assert refusals(code) == before + 1
    assert not client.keys("node:*:inbox")
    assert not client.exists(redis_keys.tokens("gen"))
    # Who is on the route and breaks its rules is blamed for it; nobody else can be.
    blamed = code not in ("epoch_over", "not_on_route")
    assert events(client) == ([GenerationRefused("gen", 1, sender, code)] if blamed else [])


def opening() -> OpenEdge:
    prompt = Prompt([1], [], 5, SamplingParams(0.0, 1.0, 0, []))
    place_ = StageAssignment(0, 3, "edge", "last", "middle", 100, 60, 0, 2)
    return OpenEdge("gen", 1, place_, Resume(False, False, 0), [], prompt)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (sent("middle", opening()), "not_allowed"),
        (sent("middle", Close("gen", 1)), "not_allowed"),
        (OutgoingMessage("middle", b"\xc1", b""), "wire_error"),
        (OutgoingMessage("middle", b"", b""), "wire_error"),
        (OutgoingMessage("middle", bytes(2**16 + 1), b""), "wire_error"),
        (OutgoingMessage("middle", sent("", steps()).header, b"short"), "wire_error"),
        (OutgoingMessage("", sent("", Pong("gen", 1, "edge", 1)).header, b"extra"), "wire_error"),
        (sent("middle", steps(name="gen}:tokens")), "wire_error"),
    ],
)
def test_what_nodes_have_not_to_say_is_refused(
    here: Replica, client: redis.Redis, message: OutgoingMessage, code: str
) -> None:
    begin(client)
    with Node(here, "edge") as node:
        node.say(Push(1, [message]))
        assert node.hear(PushAck) == PushAck(1, [("", 0, code)])
    assert not client.keys("node:*:inbox")
    assert not events(client)


def test_steps_of_ended_generations_do_not_hold_others_up(
    here: Replica, client: redis.Redis
) -> None:
    begin(client)
    both = Steps(
        [Step("gen", 1, 0, 1, 1, False), Step("over", 1, 0, 1, 1, False)], "float32", 2, bytes(16)
    )
    with Node(here, "edge") as node:
        assert node.push(("middle", both)).refused == [("over", 1, "epoch_over")]
    assert inbox(client, "middle") == [both]


def test_more_refusals_than_a_frame_holds_can_be_read(here: Replica, client: redis.Redis) -> None:
    begin(client)
    over = [Step(f"over_{place}", 1, 0, 1, 1, False) for place in range(256)]
    again = ("middle", Steps(over, "float32", 2, bytes(8 * 256)))
    many = [("middle", steps(name=f"gone_{place}")) for place in range(relay.MAX_ITEMS - len(over))]
    with Node(here, "edge") as node:
        told = node.push(again, again, again, again, again).refused
        assert told == [(step.request_id, 1, "epoch_over") for step in over]
        told = node.push(again, again, *many, ("middle", steps(epoch=2))).refused
        assert len(told) == relay.MAX_ITEMS


def test_one_wrong_step_stops_those_beside_it(here: Replica, client: redis.Redis) -> None:
    begin(client)
    begin(client, name="elsewhere", route=["edge", "last", "middle"])
    both = Steps(
        [Step("gen", 1, 0, 1, 1, False), Step("elsewhere", 1, 0, 1, 1, False)],
        "float32",
        2,
        bytes(16),
    )
    with Node(here, "edge") as node:
        assert sorted(node.push(("middle", both)).refused) == [
            ("elsewhere", 1, "wrong_receiver"),
            ("gen", 1, "in_bad_company"),
        ]
    assert inbox(client, "middle") == []
    assert events(client) == [GenerationRefused("gen", 1, "edge", "in_bad_company")]


def test_the_next_epoch_counts_from_the_moment_it_begins(
    here: Replica, client: redis.Redis
) -> None:
    begin(client)
    with Node(here, "edge") as node:
        assert node.push(("middle", steps())).refused == []
        begin(client, epoch=2, route=["edge", "spare", "last"])
        assert node.push(("spare", steps(epoch=2))).refused == []
        late = node.push(("", Token("gen", 1, 0, 7, "late")), ("", Token("gen", 2, 0, 7, "due")))
        assert late.refused == [("gen", 1, "epoch_over")]
        wait_until(lambda: node.push(("middle", steps())).refused)
    [(_, fields)] = client.xrange(redis_keys.tokens("gen"))
    assert fields[b"t"] == b"due"


def test_a_node_reads_its_own_inbox_only(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        put(client, "last", steps(name="private"))
        put(client, "middle", steps())
        assert node.read() == [steps()]


def test_work_wakes_a_node_that_waits_at_another_replica(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    begin(client)
    with replica(settings) as there, Node(here, "edge") as edge, Node(there, "middle") as middle:
        edge.push(("middle", steps()))
        assert middle.read() == [steps()]


def test_long_messages_travel_in_pieces(here: Replica, client: redis.Redis) -> None:
    begin(client)
    client.hset(redis_keys.live_record("gen"), "route", wide_route())
    long = steps(rows=64, wanted=0, width=4096)
    assert len(long.data) > 4 * relay.CHUNK_BYTES
    with Node(here, "edge") as edge, Node(here, "middle") as middle:
        assert edge.push(("middle", long)).refused == []
        assert middle.read() == [long]


def wide_route() -> bytes:
    return bytes(msgpack.packb([4096, CAPACITY, ["edge", "middle", "last"]]))


def test_a_connection_resumes_at_its_cursor_elsewhere(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    with Node(here, "middle") as node:
        put(client, "middle", steps(), steps(position=1))
        read = node.read()
        while len(read) < 2:
            read += node.read()
        put(client, "middle", steps(position=2))
        wait_until(lambda: node.hear(InboxDelivery))  # it is lost on the way
        node.socket.socket.shutdown(socket.SHUT_RDWR)
    with replica(settings) as there, Node(there, "middle", after=node.after) as again:
        assert again.read() == [steps(position=2)]


def test_the_relay_knows_which_push_was_the_last(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    begin(client)
    with Node(here, "edge", session="one") as node:
        node.push(("middle", steps()))
        node.push(("middle", steps(position=1)))
    with replica(settings) as there:
        with Node(there, "edge", session="one") as again:
            assert again.welcome.number == 2
        with Node(there, "edge", session="other") as other:
            assert other.welcome.number == 0


def test_what_was_read_is_trimmed_and_nothing_else(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        put(client, "middle", steps())
        node.pulse()
        assert client.xlen(redis_keys.inbox("middle")) == 1
        node.read()
        put(client, "middle", steps(position=1))
        node.pulse()
        assert inbox(client, "middle") == [steps(position=1)]
        assert client.ttl(redis_keys.inbox("middle")) > 0


def test_an_inbox_that_nobody_reads_does_not_fill_redis(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    small = make_settings(relay={"max_inbox_bytes": 2**20})
    with replica(small) as here, Node(here, "middle") as node:
        put(client, "middle", *(steps(rows=128, wanted=0, width=1024) for _ in range(4)))
        node.pulse()
        assert client.xlen(redis_keys.inbox("middle")) == 0


def test_an_inbox_does_not_fill_redis_though_its_node_is_away(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    begin(client)
    client.hset(redis_keys.live_record("gen"), "route", wide_route())
    client.xadd(redis_keys.inbox("middle"), {"h": b"short"})  # by which Redis guesses the others
    limit, lengths = 2**22, []
    with (
        replica(make_settings(relay={"max_inbox_bytes": limit})) as here,
        Node(here, "edge") as node,
    ):
        for _ in range(80):
            assert node.push(("middle", steps(rows=8, wanted=0, width=4096))).refused == []
            lengths.append(client.memory_usage(redis_keys.inbox("middle"), samples=0))
    assert 0.9 * limit < max(lengths) < 1.2 * limit


def test_an_inbox_is_not_taken_for_longer_than_it_is(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    with (
        replica(make_settings(relay={"max_inbox_bytes": 2**21})) as here,
        Node(here, "middle") as node,
    ):
        long = steps(rows=512, wanted=0, width=512)
        put(client, "middle", long, *(steps(rows=2, wanted=0, width=700) for _ in range(20)))
        guess = client.memory_usage(redis_keys.inbox("middle"), samples=1)
        assert guess > 2**21 > client.memory_usage(redis_keys.inbox("middle"), samples=0)
        node.pulse()
        assert client.xlen(redis_keys.inbox("middle")) == 21


def test_a_generation_keeps_so_many_events(here: Replica, client: redis.Redis) -> None:
    begin(client)
    pongs = [("", Pong("gen", 1, "middle", 5))] * 500
    with Node(here, "middle") as node:
        for _ in range(6):
            assert node.push(*pongs).refused == []
    assert MAX_EVENTS <= client.xlen(redis_keys.events("gen")) < 1.2 * MAX_EVENTS


def test_what_pushes_write_ends_one_day(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "middle") as node:
        client.delete(redis_keys.relay_connection("middle"))
        node.push(("last", steps()), ("", Pong("gen", 1, "middle", 5)), ("edge", steps()))
    # The second step breaks the route's rules, of which its supervisor hears.
    assert client.xlen(redis_keys.events("gen")) == 2
    for key in (
        redis_keys.relay_connection("middle"),
        redis_keys.inbox("last"),
        redis_keys.events("gen"),
    ):
        assert 0 < client.ttl(key) <= 3600, key


def test_a_pulse_tells_of_room_and_ends_soon(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.pulse(room=640)
        assert client.get(redis_keys.keepalive("middle")) == b"640"
        assert 0 < client.pttl(redis_keys.keepalive("middle")) <= 1000
        began = time.monotonic()
        wait_until(
            lambda: not client.exists(redis_keys.keepalive("middle"))
        )  # the process is frozen
        assert time.monotonic() - began < 1.5
        node.pulse(room=1)
        assert client.get(redis_keys.keepalive("middle")) == b"1"


def test_a_node_that_says_farewell_is_gone_at_once(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.pulse()
        client.persist(redis_keys.keepalive("middle"))
    wait_until(lambda: not client.exists(redis_keys.keepalive("middle")))


def test_the_newest_connection_displaces_the_others(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    with replica(settings) as there, Node(here, "middle") as first:
        first.pulse(room=1)
        with Node(there, "middle") as second:
            first.say(KeepAlive(1, 2, first.after))
            with pytest.raises(ConnectionClosed) as closed:
                first.hear(KeepAliveAck)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == relay.SUPERSEDED
            assert client.get(redis_keys.keepalive("middle")) == b"1"
            second.pulse(room=3)
            assert client.get(redis_keys.keepalive("middle")) == b"3"


def test_a_half_open_connection_is_closed(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.2})
    with (
        replica(impatient) as here,
        Node(here, "middle") as node,
        pytest.raises(ConnectionClosed),
    ):
        node.hear(KeepAliveAck)


def test_who_talks_without_a_pulse_is_half_open(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    with replica(impatient) as here, Node(here, "middle") as node:
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:
            while time.monotonic() - began < PATIENCE:
                node.push()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.TRY_AGAIN


def test_the_pieces_of_a_long_frame_are_signs_of_life(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    long = relay.encode(Push(1, [OutgoingMessage("middle", b"", bytes(8 * relay.CHUNK_BYTES))]))
    with replica(impatient) as here, Node(here, "edge") as node:
        for message in relay.chunks(long):
            node.socket.send(message)
            time.sleep(0.1)
        assert node.hear(PushAck).number == 1


def test_a_displaced_connection_ends_although_it_never_pulses(
    here: Replica, settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.websocket.OWNER_LOOK", 0.1)
    with replica(settings) as there, Node(here, "middle") as first, Node(there, "middle"):
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(100):
                first.push()
                time.sleep(0.05)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.SUPERSEDED


def test_a_node_has_few_connections_at_once(here: Replica, client: redis.Redis) -> None:
    with contextlib.ExitStack() as several:
        for _ in range(MOST_OF_NODE):
            several.enter_context(dial(here, "middle"))
        with pytest.raises(InvalidStatus) as refused:
            dial(here, "middle")
        assert refused.value.response.status_code == 429
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        with Node(here, "edge") as other:
            other.pulse()
    wait_until(lambda: opens(here, "middle"))


def test_a_process_serves_so_many_nodes_and_no_more(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    small = make_settings(relay={"max_connections": 2})
    with replica(small) as here, Node(here, "edge"), Node(here, "middle") as middle:
        with pytest.raises(InvalidStatus) as refused:
            dial(here, "last")
        assert refused.value.response.status_code == 503
        url, headers = here.url + relay.EXCHANGE_PATH, bearer(here.token("last"))
        assert httpx.post(url, content=b"", headers=headers).status_code == 503
        middle.socket.close()
        wait_until(lambda: opens(here, "last"))


def dial(at: Replica, node_id: str) -> ClientConnection:
    return connect(websocket_url(at), additional_headers=bearer(at.token(node_id)))


def opens(at: Replica, node_id: str) -> bool:
    with contextlib.suppress(InvalidStatus), dial(at, node_id):
        return True
    return False


def test_who_takes_nothing_in_does_not_stay(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    with replica(impatient) as here, Node(here, "middle") as node:
        wait_until(lambda: connections() == 1)
        put(client, "middle", *[steps(rows=256, wanted=0, width=1024)] * 40)
        wait_until(lambda: connections() == 0)
        node.socket.socket.shutdown(socket.SHUT_RDWR)  # it would wait for what it did not read


def connections() -> float | None:
    return REGISTRY.get_sample_value("far_relay_connections")


def test_redis_may_forget_everything(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.pulse(room=1)
        client.flushall()
        node.pulse(room=2)
        assert client.get(redis_keys.keepalive("middle")) == b"2"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91\xdd\xff\xff\xff\xff",
        bytes(2**10),
        relay.encode(KeepAliveAck(1)),
        relay.encode(Hello(1, "again", "")),
        relay.encode(relay.Chunk(2**40, b"x")),
    ],
)
def test_a_frame_that_is_none_ends_the_connection(
    here: Replica, client: redis.Redis, data: bytes
) -> None:
    with Node(here, "middle") as node:
        node.socket.send(data)
        with pytest.raises(ConnectionClosed) as closed:
            node.hear(KeepAliveAck)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.BROKEN


@pytest.mark.parametrize(
    ("max_message_bytes", "code"),
    [(relay.MAX_MESSAGE_BYTES, CloseCode.MESSAGE_TOO_BIG), (2**24, relay.BROKEN)],
)
def test_a_message_that_is_too_long_ends_the_connection(
    settings: Settings, max_message_bytes: int, code: int
) -> None:
    with (
        replica(settings, max_message_bytes=max_message_bytes) as here,
        Node(here, "middle") as node,
    ):
        node.socket.send(relay.encode(relay.Chunk(0, bytes(relay.MAX_MESSAGE_BYTES))))
        with pytest.raises(ConnectionClosed) as closed:
            node.hear(KeepAliveAck)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def test_nothing_compressed_is_taken_in(here: Replica, client: redis.Redis) -> None:
    with dial(here, "middle") as offering:
        assert offering.request is not None
        assert "permessage-deflate" in offering.request.headers["Sec-WebSocket-Extensions"]
        assert offering.protocol.extensions == []


def test_the_gateway_is_started_with_these_limits() -> None:
    module, *options = gateway_command(8000)[1:]
    assert module == "uvicorn"
    started = uvicorn.main.make_context("uvicorn", options).params
    assert started["ws_max_size"] == relay.MAX_MESSAGE_BYTES
    assert started["ws_per_message_deflate"] is False


def test_another_version_is_turned_away(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle"):  # the same, but for the version
        pass
    with connect(websocket_url(here), additional_headers=bearer(here.token("middle"))) as speaking:
        speaking.send(relay.encode(Hello(relay.VERSION + 1, "session", "")))
        with pytest.raises(ConnectionClosed):
            speaking.recv(timeout=PATIENCE)


def websocket_url(at: Replica) -> str:
    return f"ws://127.0.0.1:{at.port}{relay.PATH}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_a_node_gets_in(here: Replica, client: redis.Redis) -> None:
    tokens = {
        "": 401,
        "nonsense": 401,
        here.token(WALLET, "user"): 403,
        here.token(WALLET, "machine"): 403,
    }
    for token, status in tokens.items():
        headers = bearer(token) if token else {}
        with pytest.raises(InvalidStatus) as refused:
            connect(websocket_url(here), additional_headers=headers)
        assert refused.value.response.status_code == status
        answer = httpx.post(here.url + relay.EXCHANGE_PATH, content=b"", headers=headers)
        assert answer.status_code == status


def test_a_token_is_over_when_the_node_registers_again(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("twice"))
    here.register_again("twice")
    with pytest.raises(InvalidStatus) as refused:
        connect(websocket_url(here), additional_headers=headers)
    hello = relay.bundle([relay.encode(Hello(relay.VERSION, "session", ""))])
    answer = httpx.post(here.url + relay.EXCHANGE_PATH, content=hello, headers=headers)
    for status, body in (
        (refused.value.response.status_code, refused.value.response.body),
        (answer.status_code, answer.content),
    ):
        assert (status, json.loads(body or b"{}")["code"]) == (401, "token_invalid")


OWN = {
    relay.EXCHANGE_PATH,
    "/api/nodes/heartbeat",
    "/nodes/heartbeat",
    "/api/nodes/req_1",
    "/api/models/req_1/files",
}


def test_a_nodes_token_opens_nothing_else(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("middle"))
    guarded = 0
    with httpx.Client(base_url=here.url, timeout=PATIENCE) as http:
        for path, method in endpoints(http):
            without = http.request(method, path, json={})
            if path in OWN or without.status_code != httpx.codes.UNAUTHORIZED:
                continue  # it is for nodes, or for everybody
            assert http.request(method, path, headers=headers, json={}).status_code == 403, path
            guarded += 1
    assert guarded >= 5


def endpoints(http: httpx.Client) -> list[tuple[str, str]]:
    """All that there are, with something for their parameters."""
    paths = http.get("/openapi.json").json()["paths"]
    return [
        (re.sub(r"\{[^}]*\}", "req_1", path), method)
        for path, methods in paths.items()
        for method in methods
    ]


class Poller:
    """A node that uses long polls."""

    def __init__(self, at: Replica, node_id: str) -> None:
        self._http = httpx.Client(
            base_url=at.url, headers=bearer(at.token(node_id)), timeout=PATIENCE
        )
        [welcome] = self.post(Hello(relay.VERSION, "polling", ""))
        assert isinstance(welcome, Welcome)
        self.welcome = welcome

    def poll(self, *frames: Any, wait: int = 0, after: str = "") -> list[Any]:
        first = Poll(self.welcome.connection, "polling", after or self.welcome.after, wait)
        return self.post(first, *frames)

    def post(self, *frames: Any) -> list[Any]:
        body = relay.bundle(map(relay.encode, frames))
        answer = self._http.post(relay.EXCHANGE_PATH, content=body)
        assert answer.status_code == 200, answer.text
        return [relay.decode(frame) for frame in relay.unbundle(answer.content)]

    def close(self) -> None:
        self._http.close()


def test_the_same_by_long_polls(here: Replica, client: redis.Redis) -> None:
    begin(client)
    node = Poller(here, "middle")
    put(client, "middle", steps(), steps(position=1))
    [work] = node.poll(wait=1000)
    assert len(work.entries) == 2
    push = Push(1, [sent("last", steps()), sent("edge", steps())])
    accepted, beat = node.poll(push, KeepAlive(5, 64, work.after))
    assert accepted == PushAck(1, [("gen", 1, "wrong_receiver")])
    assert beat == KeepAliveAck(5)
    assert inbox(client, "last") == [steps()]
    assert client.get(redis_keys.keepalive("middle")) == b"64"
    assert node.poll(wait=50, after=work.after) == []
    with Node(here, "middle", session="polling") as again:
        assert again.welcome.number == 1
        assert node.poll(wait=50) == [Superseded()]
    node.close()


def test_a_body_is_read_up_to_a_limit(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("middle"))
    url = here.url + relay.EXCHANGE_PATH
    assert httpx.post(url, content=b"\xc1", headers=headers).json()["code"] == "wire_error"
    for frame in (KeepAlive(1, 1, ""), KeepAliveAck(1)):
        body = relay.bundle([relay.encode(frame)])
        assert httpx.post(url, content=body, headers=headers).status_code == 400
    large = bytes(relay.MAX_FRAME_BYTES + 1)
    assert httpx.post(url, content=large, headers=headers).json()["code"] == "body_too_large"


def test_a_node_has_few_requests_under_way(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    with replica(impatient) as here, contextlib.ExitStack() as several:
        for _ in range(MOST_OF_NODE):  # of each, half of the body is to come, and never does
            request = several.enter_context(socket.create_connection(("127.0.0.1", here.port)))
            request.sendall(begun(here, "middle"))
        url, headers = here.url + relay.EXCHANGE_PATH, bearer(here.token("middle"))

        def status() -> int:
            return httpx.post(url, content=b"\xc1", headers=headers).status_code

        wait_until(lambda: status() == 429)
        assert httpx.post(url, content=b"", headers=bearer(here.token("edge"))).status_code == 400
        wait_until(lambda: status() == 400)


def begun(at: Replica, node_id: str) -> bytes:
    lines = [
        f"POST {relay.EXCHANGE_PATH} HTTP/1.1",
        "Host: relay",
        f"Authorization: Bearer {at.token(node_id)}",
        "Content-Length: 2000",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + bytes(1000)


def test_who_sends_too_much_waits(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    begin(client)
    slow = make_settings(relay={"messages_per_second": 20})
    with replica(slow) as here, Node(here, "edge") as node:
        began = time.monotonic()
        for _ in range(60):  # two seconds' worth come at once
            assert node.push(("middle", steps())).refused == []
        assert time.monotonic() - began > 0.5
    assert len(inbox(client, "middle")) == 60


def test_no_message_is_in_the_log(
    here: Replica, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LogCapture()
    monkeypatch.setattr(
        "api.relay.forwarder.log", structlog.wrap_logger(None, processors=[written])
    )
    begin(client)
    with Node(here, "middle") as node:
        node.push(("", Token("gen", 1, 0, 7, "xylophone")), ("nobody", steps()))
    assert "push_refused" in str(written.entries)
    assert "xylophone" not in str(written.entries)
