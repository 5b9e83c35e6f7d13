"""Sender, relay and receiver have the limits of one module: what one lets pass, the next takes."""

import pytest

from api.relay import message_rules
from mesh import relay, wire
from mesh.errors import WireError
from mesh.keepalive import (
    KEEPALIVE_INTERVAL,
    KEEPALIVE_TTL,
    MIN_RELAY_KEEPALIVE_TTL,
    POLLING_KEEPALIVE_TTL,
    RELAY_KEEPALIVE_INTERVAL,
)
from mesh.relay import OutgoingMessage, Push
from mesh.route_record import RouteRecord
from mesh.wire import (
    GenerationRefused,
    Open,
    OpenEdge,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    limits,
)
from node_runner.engine.engine import Engine
from node_runner.engine.scheduler import PREFILL_CHUNK
from node_runner.outputs import NodeMessage
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import KV_BUDGET, load_span

CAPACITY = 2 * limits.MAX_STEP_ROWS
ROUTE = RouteRecord(256, CAPACITY, ["first", "middle", "last"])
AFRESH = Resume(keep=False, replay=False, known=0)


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    span = load_span(DEMO_MODEL, (1, 2), tmp_path_factory.mktemp("spans"))
    assert span.hidden_size == ROUTE.width
    return Engine(span, node_id="middle", kv_budget_bytes=KV_BUDGET)


def position(stage: int = 1) -> StageAssignment:
    return StageAssignment(stage, 3, "first", "first", "last", CAPACITY, 60, stage, stage + 1)


def step_of(rows: int) -> Step:
    return Step("gen", 1, 0, rows, 0, False)


def test_an_engine_prefills_no_more_at_once_than_the_relay_lets_pass() -> None:
    assert PREFILL_CHUNK <= limits.MAX_STEP_ROWS


@pytest.mark.parametrize("more", [0, 1])
def test_a_receiver_takes_the_longest_step_that_the_relay_lets_pass(
    middle: Engine, more: int
) -> None:
    step = step_of(limits.MAX_STEP_ROWS + more)
    code = message_rules.check_step("first", "middle", step, ROUTE.width, ROUTE)
    assert code == ("wrong_rows" if more else None)
    middle.step([Open("gen", 1 + more, position(), AFRESH, [])])
    data = bytes(4 * step.rows * ROUTE.width)
    step = step._replace(epoch=1 + more)
    [answer] = middle.step([Steps([step], "float32", ROUTE.width, data)])
    if more:
        assert isinstance(answer, GenerationRefused)
        assert (answer.code, answer.node_id) == ("flood", "first")
    else:
        assert isinstance(answer, NodeMessage)
        assert isinstance(answer.message, Steps)
        assert answer.message.rows == step.rows


@pytest.mark.parametrize("more", [0, 1])
def test_a_message_has_no_more_steps_for_a_receiver_than_for_the_relay(more: int) -> None:
    count = limits.MAX_STEPS + more
    steps = Steps([step_of(1)] * count, "float16", 1, bytes(2 * count))
    entry = {field: bytes(value) for field, value in wire.encode(steps).items()}
    for max_items in (limits.MAX_STEPS, limits.MAX_HEADER_BYTES):
        if more:
            with pytest.raises(WireError):
                wire.decode(entry, max_items=max_items)
        else:
            assert wire.decode(entry, max_items=max_items) == steps


def test_an_array_that_claims_more_items_than_there_are_bytes_is_refused_at_once() -> None:
    """Before a list of as many is allocated, for each of the arrays that stand in each other."""
    with pytest.raises(WireError) as refused:
        wire.decode({wire.HEADER: b"\xdc\xff\xff" * 400})
    assert "exceeds max_array_len(1200)" in str(refused.value.__cause__)


def test_the_largest_message_of_a_node_fits_one_frame() -> None:
    steps = Steps([Step("x" * limits.MAX_REQUEST_ID, 2**31, 2**31, 512, 512, True)], "int8", 1, b"")
    most = Steps(steps.steps * limits.MAX_STEPS, "int8", 1, b"")
    assert len(wire.encode(most)[wire.HEADER]) <= limits.MAX_NODE_HEADER_BYTES
    message = OutgoingMessage(
        "x" * limits.MAX_NODE_ID,
        bytes(limits.MAX_NODE_HEADER_BYTES),
        bytes(limits.MAX_TENSOR_BYTES),
    )
    [batch] = relay.batches([message])
    assert len(relay.encode(Push(1, batch))) <= relay.MAX_FRAME_BYTES


def test_ids_and_codes_fit_a_frame() -> None:
    longest = max(limits.MAX_REQUEST_ID, limits.MAX_NODE_ID, limits.MAX_REFUSAL_CODE)
    assert longest <= relay.MAX_TEXT


def test_a_resumed_generation_of_the_most_tokens_fits_its_header() -> None:
    sampling = SamplingParams(0.7, 0.9, 2**62, ["x" * limits.MAX_STOP_TEXT] * limits.MAX_STOP_TEXTS)
    generated = [limits.MAX_TOKEN_ID] * limits.MAX_TOKENS
    prompt = Prompt([limits.MAX_TOKEN_ID] * 200_000, generated, limits.MAX_TOKENS, sampling)
    message = OpenEdge("gen", 1, position(0), AFRESH, [], prompt)
    entry = {field: bytes(value) for field, value in wire.encode(message).items()}
    assert wire.decode(entry) == message


def test_a_route_of_a_node_for_each_layer_can_be_read() -> None:
    route = RouteRecord(1, 1, ["node"] * limits.MAX_LAYERS)
    assert RouteRecord.unpack(route.pack()) == route


def test_a_keep_alive_holds_until_another_has_come_and_been_lost() -> None:
    assert KEEPALIVE_TTL > 2 * KEEPALIVE_INTERVAL
    assert min(MIN_RELAY_KEEPALIVE_TTL, POLLING_KEEPALIVE_TTL) > 2 * RELAY_KEEPALIVE_INTERVAL
