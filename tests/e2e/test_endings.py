"""Ends before the end: cancelled, hung up on, killed, flushed. Nobody pays for what he did not
get, and nothing hangs."""

import json
import signal
import time
from typing import Any

import pytest
import redis

from mesh import redis_keys
from node_runner.service.exit_codes import TEMPORARY_FAILURE
from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import (
    LONG,
    Reference,
    User,
    balance,
    cost_of,
    kv_used,
    query,
    tokens_so_far,
    wait_until,
    worker_lines,
)


def assert_paid_exactly(stack: DevelopmentStack, user: User, *jobs: dict[str, Any]) -> None:
    """The wallet began with 1 FAR."""
    assert balance(stack, user.account, "available") == 1 - sum(map(cost_of, jobs))
    assert balance(stack, user.account, "held") == 0


def test_cancel_charges_for_delivered_tokens_only(stack: DevelopmentStack, user: User) -> None:
    request_id = user.submit("The try statement", max_tokens=LONG)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    job = user.http.delete(f"/api/inference/jobs/{request_id}").raise_for_status().json()
    assert job["status"] == "completed"
    assert job["finish_reason"] == "cancelled"
    wait_until(lambda: kv_used(stack) == 0, "every node's KV room", seconds=5)
    assert 3 < job["tokens_generated"] < LONG
    events = user.events(request_id)
    assert len(events) - 1 == job["tokens_generated"]
    assert_paid_exactly(stack, user, job)


def test_hanging_up_on_a_stream_cancels_it(
    stack: DevelopmentStack, user: User, redis_client: redis.Redis
) -> None:
    body = user.body("The class statement", max_tokens=LONG, stream=True)
    path = "/api/inference/distributed/generate"
    with user.http.stream("POST", path, json=body) as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("data: "):
            pass
    request_id = query(
        stack,
        "SELECT request_id FROM inference_sessions "
        f"WHERE user_wallet = '{user.account.address.lower()}'",
    )[0]
    job = user.ended(request_id, seconds=10)
    assert job["finish_reason"] == "cancelled"
    wait_until(lambda: kv_used(stack) == 0, "every node's KV room", seconds=5)
    assert job["tokens_generated"] < LONG
    assert_paid_exactly(stack, user, job)


def test_closing_a_reader_does_not_cancel_an_asynchronous_job(user: User) -> None:
    request_id = user.submit("The import statement", max_tokens=100)
    user.events(request_id, stop_after=2)
    job = user.ended(request_id)
    assert job["finish_reason"] in ("length", "stop")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "end"])
def test_a_killed_worker_is_replaced_within_ten_seconds(
    stack: DevelopmentStack, user: User, reference: Reference, how: str
) -> None:
    """By `kill -9`, and by SIGTERM."""
    prompt = "The del statement"
    request_id = user.submit(prompt, max_tokens=LONG)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    holder = supervisor_of(stack, request_id)
    getattr(stack.processes, how)(holder)
    killed_at = time.monotonic()
    try:
        wait_until(
            lambda: lease_counter(stack, request_id) > 1, "another worker's lease", seconds=10
        )
        assert time.monotonic() - killed_at < 10
        job = user.ended(request_id)
    finally:
        stack.start_worker(int(holder.removeprefix("worker-")))
    assert job["status"] == "completed"
    assert job["text"] == reference.text(prompt, LONG)
    assert_paid_exactly(stack, user, job)
    captures = query(stack, f"SELECT id FROM ledger_transactions WHERE reference = '{request_id}'")
    assert len(captures) == 2  # one hold, one capture


def supervisor_of(stack: DevelopmentStack, request_id: str) -> str:
    """The worker whose log says that it took the generation up."""

    def look() -> str | None:
        for name, child in stack.processes.children.items():
            if name.startswith("worker-") and any(
                "inference_started" in line and request_id in line
                for line in child.log.read_text().splitlines()
            ):
                return name
        return None

    found: str = wait_until(look, "a supervisor")
    return found


def lease_counter(stack: DevelopmentStack, request_id: str) -> int:
    rows = query(
        stack, f"SELECT lease_counter FROM inference_sessions WHERE request_id = '{request_id}'"
    )
    return int(rows[0])


@pytest.mark.slow
def test_a_flushed_redis_loses_no_job(
    stack: DevelopmentStack, user: User, reference: Reference, redis_client: redis.Redis
) -> None:
    prompts = [f"Flushed {number}" for number in range(6)]
    jobs = [user.submit(prompt, max_tokens=120) for prompt in prompts]
    wait_until(lambda: any(tokens_so_far(user, job) > 3 for job in jobs), "some tokens")
    redis_client.flushall()
    ended = [user.ended(job) for job in jobs]
    assert [job["status"] for job in ended] == ["completed"] * len(jobs)
    assert [job["text"] for job in ended] == [reference.text(prompt, 120) for prompt in prompts]
    assert_paid_exactly(stack, user, *ended)


def test_a_reader_does_not_notice_that_redis_was_flushed(
    user: User, reference: Reference, redis_client: redis.Redis
) -> None:
    prompt = "The return statement"
    request_id = user.submit(prompt, max_tokens=200)
    first = user.events(request_id, stop_after=5)
    redis_client.flushall()
    rest = user.events(request_id, after=first[-1][0])
    ids = [event_id for event_id, _ in [*first, *rest[:-1]]]
    assert ids == [str(number + 1) for number in range(len(ids))]
    text = "".join(data["token"] for _, data in [*first, *rest[:-1]])
    assert text == reference.text(prompt, 200)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, id="edge"), pytest.param(2, id="last span")])
def test_a_generation_waits_for_a_killed_node_without_a_replica(
    stack: DevelopmentStack, user: User, reference: Reference, victim: int
) -> None:
    """It goes on when somebody serves the layers again, with the same tokens."""
    prompt = "The while statement"
    request_id = user.submit(prompt, max_tokens=LONG)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    stack.processes.kill(f"node-{victim}")
    try:
        wait_until(
            lambda: worker_lines(stack, "node_penalised", request_id), "the news of its death"
        )
        assert user.job(request_id)["status"] == "active"
    finally:
        stack.start_node(victim, (2 * victim, 2 * victim + 2))
        stack.wait_for_nodes(3)
    job = user.ended(request_id)
    assert job["status"] == "completed"
    assert job["text"] == reference.text(prompt, LONG)
    assert_paid_exactly(stack, user, job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "blow"),
    [
        pytest.param(0, signal.SIGKILL, id="edge killed"),
        pytest.param(1, signal.SIGKILL, id="middle killed"),
        pytest.param(2, signal.SIGKILL, id="last killed"),
        pytest.param(1, signal.SIGSTOP, id="middle stopped"),
    ],
)
def test_a_node_with_a_replica_is_replaced(
    stack: DevelopmentStack, user: User, reference: Reference, stage: int, blow: signal.Signals
) -> None:
    """The generation goes on over the other node, with the same tokens; the rest keep their KV."""
    name, spare = f"node-{stage}", f"node-{stage}b"
    span = (2 * stage, 2 * stage + 2)
    children = stack.processes.children
    stack.start_node(stage, span, name=spare)
    stack.wait_for_nodes(4)
    prompt = "The raise statement"
    request_id = user.submit(prompt, max_tokens=LONG)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    [node_id] = query(
        stack,
        "SELECT node_id FROM route_hops JOIN inference_sessions s ON s.id = session_id "
        f"WHERE request_id = '{request_id}' AND stage = {stage}",
    )
    used = spare if node_id in children[spare].log.read_text() else name
    children[used].process.send_signal(blow)
    try:
        job = user.ended(request_id)
        assert job["status"] == "completed"
        assert job["text"] == reference.text(prompt, LONG)
        assert len(job["nodes_used"]) == 4
        assert_paid_exactly(stack, user, job)
        opened = worker_lines(stack, "route_opened", request_id)
        assert '"reason": "silent"' in opened[-1]
        assert '"kept": 2' in opened[-1]
    finally:
        stack.processes.kill(used)
        if used == name:
            stack.processes.end(spare)
            stack.start_node(stage, span)
        stack.wait_for_nodes(3)


@pytest.mark.slow
def test_a_node_drains_on_sigterm(
    stack: DevelopmentStack, user: User, reference: Reference
) -> None:
    """What runs ends, and no new route uses the node."""
    prompt = "The assert statement"
    request_id = user.submit(prompt, max_tokens=300)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    child = stack.processes.children.pop("node-1")
    child.process.terminate()
    try:
        job = user.ended(request_id)
        assert job["text"] == reference.text(prompt, 300)
        assert child.process.wait(timeout=30) == 0
        assert '"abandoned": 0' in child.log.read_text()
        refused = user.http.post(
            "/api/inference/distributed/generate", json=user.body("More", max_tokens=5)
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "no_route")
        assert int(refused.headers["Retry-After"]) > 0
    finally:
        stack.start_node(1, (2, 4))
        stack.wait_for_nodes(3)


def test_streams_of_a_running_generation_expire_too(user: User, redis_client: redis.Redis) -> None:
    request_id = user.submit("The pass statement", max_tokens=200)
    wait_until(lambda: tokens_so_far(user, request_id) > 0, "a token")
    assert redis_client.ttl(redis_keys.live_record(request_id)) > 0
    user.ended(request_id)


@pytest.mark.slow
def test_a_node_that_the_platform_forgot_ends_and_says_so(stack: DevelopmentStack) -> None:
    """So that whoever keeps it running starts it again, and it registers anew."""
    child = stack.start_node(1, (2, 4), name="forgotten")
    stack.wait_for_nodes(4)
    started = next(line for line in child.log.read_text().splitlines() if "node_started" in line)
    node_id = json.loads(started)["node_id"]
    query(stack, f"DELETE FROM node_registry WHERE node_id = '{node_id}'")
    assert child.process.wait(timeout=30) == TEMPORARY_FAILURE
    del stack.processes.children["forgotten"]
    assert "does not know this node any more" in child.log.read_text()
    stack.wait_for_nodes(3)
