"""What nodes send: what the relay forwards, and what it refuses."""

import time
from collections.abc import Callable

import pytest
import redis
import structlog
from prometheus_client import REGISTRY
from structlog.testing import LogCapture

from market.settings import Settings
from mesh import redis_keys, relay
from mesh.relay import (
    OutgoingMessage,
    Push,
    PushAck,
)
from mesh.wire import (
    PLATFORM,
    Close,
    Ended,
    GenerationRefused,
    Message,
    OpenEdge,
    Pong,
    PrefixCached,
    PrefixReused,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    Token,
)
from mesh.wire.logprobs import Logprob, pack_logprobs
from tests.support.gateway.relay import (
    CAPACITY,
    Node,
    Replica,
    begin,
    events,
    inbox,
    outgoing,
    replica,
    senders,
    steps,
    wait_until,
)

LOGPROBS = pack_logprobs([Logprob(8, -0.5)])


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
        first, second = (
            Token("gen", 1, 0, 7, "first"),
            Token("gen", 1, 1, 8, "second", LOGPROBS),
        )
        written = [("", first), ("", second)]
        told = [("", PrefixReused("gen", 1, 8)), ("", Ended("gen", 1, "stop", 2))]
        assert node.push(*written, *told).refused == []
    assert [fields[b"t"] for _, fields in client.xrange(redis_keys.tokens("gen"))] == [
        b"first",
        b"second",
    ]
    assert [fields.get(b"p") for _, fields in client.xrange(redis_keys.tokens("gen"))] == [
        None,
        LOGPROBS,
    ]
    assert events(client) == [PrefixReused("gen", 1, 8), Ended("gen", 1, "stop", 2)]


def test_nodes_answer_pings_and_refuse_for_their_senders(
    here: Replica, client: redis.Redis
) -> None:
    begin(client)
    sent: list[Message] = [
        Pong("gen", 1, "middle", 5),
        GenerationRefused("gen", 1, "edge", "not_finite"),
    ]
    with Node(here, "middle") as node:
        assert node.push(*(("", message) for message in sent)).refused == []
    assert events(client) == sent
    assert senders(client) == ["middle", "middle"]


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
    "a cached prefix, not of the edge": ("last", "", PrefixReused("gen", 1, 8), "not_the_edge"),
    "a longer cached prefix": ("edge", "", PrefixReused("gen", 1, 101), "out_of_capacity"),
    "a token not of the edge": ("middle", "", Token("gen", 1, 0, 7, "x"), "not_the_edge"),
    "a token of an old epoch": ("edge", "", Token("gen", 0, 0, 7, "x"), "epoch_over"),
    "a token beyond the end": ("edge", "", Token("gen", 1, 100, 7, "x"), "out_of_capacity"),
    "a long token": ("edge", "", Token("gen", 1, 0, 7, "x" * 5000), "too_long"),
    "half a log-probability": ("edge", "", Token("gen", 1, 0, 7, "x", LOGPROBS[1:]), "malformed"),
    "many log-probabilities": ("edge", "", Token("gen", 1, 0, 7, "x", 22 * LOGPROBS), "malformed"),
    "the end, not of the edge": ("last", "", Ended("gen", 1, "stop", 1), "not_the_edge"),
    "more drafts than fit": ("edge", "", Ended("gen", 1, "stop", 1, 0, 10**6), "out_of_capacity"),
    "fewer drafts than none": ("edge", "", Ended("gen", 1, "stop", 1, -1), "out_of_capacity"),
    "the end, for a reason": ("edge", "", Ended("gen", 1, "bored", 1), "malformed"),
    "a gap of another's": ("middle", "", GenerationRefused("gen", 1, "edge", "gap"), "wrong_node"),
    "refused for the next node": (
        "edge",
        "",
        GenerationRefused("gen", 1, "middle", "gap"),
        "wrong_node",
    ),
    "a long code": ("edge", "", GenerationRefused("gen", 1, "edge", "x" * 65), "too_long"),
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
    # An event for the supervisor of a node on the route that breaks its rules; of nobody else.
    reported = code not in ("epoch_over", "not_on_route")
    assert events(client) == ([GenerationRefused("gen", 1, sender, code)] if reported else [])
    assert senders(client) == ([PLATFORM] if reported else [])  # the relay saw it


def opening() -> OpenEdge:
    prompt = Prompt([1], [], 5, SamplingParams(0.0, 1.0, 0, []))
    position = StageAssignment(0, 3, "edge", "last", "middle", 100, 60, 0, 2)
    return OpenEdge("gen", 1, position, Resume(False, False, 0), [], prompt)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (outgoing("middle", opening()), "not_allowed"),
        (outgoing("middle", Close("gen", 1)), "not_allowed"),
        (OutgoingMessage("middle", b"\xc1", b""), "wire_error"),
        (OutgoingMessage("middle", b"", b""), "wire_error"),
        (OutgoingMessage("middle", bytes(2**16 + 1), b""), "wire_error"),
        (OutgoingMessage("middle", outgoing("", steps()).header, b"short"), "wire_error"),
        (
            OutgoingMessage("", outgoing("", Pong("gen", 1, "edge", 1)).header, b"extra"),
            "wire_error",
        ),
        (outgoing("middle", steps(name="gen}:tokens")), "wire_error"),
    ],
)
def test_what_nodes_may_not_send_is_refused(
    here: Replica, client: redis.Redis, message: OutgoingMessage, code: str
) -> None:
    begin(client)
    with Node(here, "edge") as node:
        node.send(Push(1, [message]))
        assert node.receive(PushAck) == PushAck(1, [("", 0, code)])
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
    over = [Step(f"over_{index}", 1, 0, 1, 1, False) for index in range(256)]
    again = ("middle", Steps(over, "float32", 2, bytes(8 * 256)))
    many = [("middle", steps(name=f"gone_{index}")) for index in range(relay.MAX_ITEMS - len(over))]
    with Node(here, "edge") as node:
        refused = node.push(again, again, again, again, again).refused
        assert refused == [(step.request_id, 1, "epoch_over") for step in over]
        refused = node.push(again, again, *many, ("middle", steps(epoch=2))).refused
        assert len(refused) == relay.MAX_ITEMS


def test_one_wrong_step_stops_those_beside_it(here: Replica, client: redis.Redis) -> None:
    begin(client)
    begin(client, name="other_route", route=["edge", "last", "middle"])
    both = Steps(
        [Step("gen", 1, 0, 1, 1, False), Step("other_route", 1, 0, 1, 1, False)],
        "float32",
        2,
        bytes(16),
    )
    with Node(here, "edge") as node:
        assert sorted(node.push(("middle", both)).refused) == [
            ("gen", 1, "in_bad_company"),
            ("other_route", 1, "wrong_receiver"),
        ]
    assert inbox(client, "middle") == []
    assert events(client) == []  # nobody is to blame for it
    assert events(client, "other_route") == [
        GenerationRefused("other_route", 1, "edge", "wrong_receiver")
    ]


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
