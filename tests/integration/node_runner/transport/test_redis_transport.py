"""A node's way to its work, on a real Redis, and through a Redis that goes away."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis

from market.jobs import live_session
from market.jobs.live_session import TokenEntry
from mesh import redis_keys, token_stream, wire
from mesh.keepalive import KEEPALIVE_TTL
from mesh.wire import Ping, Step, Steps, StopEpoch, Token
from mesh.wire.logprobs import Logprob, pack_logprobs
from node_runner.engine.engine import Engine
from node_runner.node.engine_set import EngineSet
from node_runner.node.loop import ServingLoop
from node_runner.node.step_meter import StepMeter
from node_runner.outputs import NodeMessage
from node_runner.transport.interface import TransportUnreachable
from node_runner.transport.redis_transport import TRIM_EVERY, RedisTransport
from stack.servers import free_port, redis_command, wait_for_redis
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import load_span


class Server:
    """A Redis that a test may stop."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(redis_command(self.port, self._folder))
        wait_for_redis(self.port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as connected:
        yield connected


def connect(server: Server, node_id: str, free_kv: int = 0) -> RedisTransport:
    return RedisTransport(server.url, node_id, lambda: free_kv)


def step(request_id: str, position: int = 0) -> Steps:
    return Steps([Step(request_id, 1, position, 1, 1, False)], "float32", 2, b"12345678")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def put(client: redis.Redis, node_id: str, *messages: wire.Message) -> None:
    for message in messages:
        client.xadd(redis_keys.inbox(node_id), wire.encode(message))


def test_a_push_wakes_a_node_that_waits(server: Server) -> None:
    sender, receiver = connect(server, "a"), connect(server, "b")
    received: list[Sequence[wire.Message]] = []
    waiting = threading.Thread(target=lambda: received.append(receiver.exchange([], wait=4)))
    waiting.start()
    sender.exchange([NodeMessage("b", step("gen"))], wait=0)
    waiting.join()
    assert received == [[step("gen")]]
    sender.close()
    receiver.close()


def test_only_what_comes_after_the_cursor_is_read(server: Server, client: redis.Redis) -> None:
    put(client, "a", step("before"))
    transport = connect(server, "a")
    put(client, "a", step("one"), step("two"))
    assert transport.exchange([], wait=1) == [step("one"), step("two")]
    assert transport.exchange([], wait=0) == []
    transport.close()


def test_what_was_read_is_trimmed(server: Server, client: redis.Redis) -> None:
    transport = connect(server, "a")
    for number in range(TRIM_EVERY + 1):
        put(client, "a", step("gen", number))
        assert transport.exchange([], wait=1) == [step("gen", number)]
    assert client.xlen(redis_keys.inbox("a")) <= 2
    assert client.ttl(redis_keys.inbox("a")) > 0
    transport.close()


def test_a_token_of_an_older_epoch_comes_back_as_a_halt(
    server: Server, client: redis.Redis
) -> None:
    client.hset(redis_keys.live_record("gen"), "epoch", 2)
    transport = connect(server, "a")
    late, due = Token("gen", 1, 0, 7, "late"), Token("gen", 2, 0, 7, "due")
    answers = transport.exchange([late, NodeMessage("b", step("gen")), due], wait=0)
    assert answers == [StopEpoch("gen", 1)]
    [(entry, fields)] = client.xrange(redis_keys.tokens("gen"))
    assert token_stream.token_count_at(entry.decode()) == 1
    assert fields[b"t"] == b"due"
    transport.close()


def test_log_probabilities_get_to_readers(server: Server, client: redis.Redis) -> None:
    client.hset(redis_keys.live_record("gen"), "epoch", 1)
    logprobs = pack_logprobs([Logprob(8, -0.5), Logprob(7, -0.25)])
    transport = connect(server, "a")
    tokens = [Token("gen", 1, 0, 7, "without"), Token("gen", 1, 1, 8, "with", logprobs)]
    assert transport.exchange(tokens, wait=0) == []
    assert live_session.entries_of(client.xrange(redis_keys.tokens("gen"))) == [
        TokenEntry("1-0", 7, "without"),
        TokenEntry("2-0", 8, "with", logprobs),
    ]
    transport.close()


def test_a_broken_message_is_passed_over(server: Server, client: redis.Redis) -> None:
    transport = connect(server, "a")
    client.xadd(redis_keys.inbox("a"), {"h": b"\xc1", "t": b""})
    put(client, "a", step("good"))
    assert transport.exchange([], wait=1) == [step("good")]
    transport.close()


def test_an_error_among_the_answers_is_raised(server: Server, client: redis.Redis) -> None:
    client.set(redis_keys.inbox("b"), "not a stream")
    transport = connect(server, "a")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        transport.exchange([NodeMessage("b", step("one")), NodeMessage("b", step("two"))], wait=0)
    assert transport.exchange([], wait=0) == []  # no answer of before is left over
    transport.close()


@pytest.mark.parametrize(
    ("fall_ill", "recover"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
    ids=["a replica", "full"],
)
def test_a_redis_that_takes_no_writes_is_waited_for(
    server: Server, client: redis.Redis, fall_ill: Sequence[str], recover: Sequence[str]
) -> None:
    node = connect(server, "b")
    client.execute_command(*fall_ill)
    with pytest.raises(TransportUnreachable, match="does not take writes"):
        node.exchange([NodeMessage("a", step("job"))], wait=0)
    client.execute_command(*recover)
    node.exchange([NodeMessage("a", step("job"))], wait=0)
    assert client.xlen(redis_keys.inbox("a")) == 1
    node.close()


def test_without_redis_it_says_so_and_goes_on_when_it_is_back(server: Server) -> None:
    transport = connect(server, "a")
    server.stop()
    for _ in range(2):
        with pytest.raises(TransportUnreachable, match="does not answer"):
            transport.exchange([], wait=1)
    with pytest.raises(TransportUnreachable):
        connect(server, "b")
    server.start()
    assert transport.exchange([NodeMessage("a", step("gen"))], wait=1) == [step("gen")]
    transport.close()


def test_a_keepalive_tells_that_the_process_runs_and_its_free_kv(
    server: Server, client: redis.Redis
) -> None:
    transport = connect(server, "a", free_kv=640)
    wait_until(lambda: client.exists(redis_keys.keepalive("a")))
    assert client.get(redis_keys.keepalive("a")) == b"640"
    wait_until(lambda: transport.hop_ms > 0)
    assert 0 < client.pttl(redis_keys.keepalive("a")) <= 1000 * KEEPALIVE_TTL
    transport.close()
    assert not client.exists(redis_keys.keepalive("a"))


def test_a_node_outlives_redis_and_obeys_without_it(server: Server, tmp_path: Path) -> None:
    engine = Engine(load_span(DEMO_MODEL, (2, 3), tmp_path), node_id="a", kv_budget_bytes=10**6)
    engines = EngineSet("a", (2, 3), engine)
    runner = ServingLoop(engines, RedisTransport(server.url, "a", engines.free_kv), StepMeter())
    running = threading.Thread(target=runner.run)
    running.start()
    server.stop()
    server.start()
    with redis.Redis(port=server.port) as client:
        put(client, "a", Ping("gen", 1))
        wait_until(lambda: client.xlen(redis_keys.events("gen")))
    server.stop()
    began = time.monotonic()
    runner.drain()
    running.join(timeout=10)
    server.start()
    assert not running.is_alive()
    assert time.monotonic() - began < 9
