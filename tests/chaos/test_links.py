"""A node whose link to the platform is cut for five seconds, in the middle of a generation."""

import json
import signal
import time
from collections.abc import Iterator

import pytest
import redis

from benchmarks.running.proxy import SlowLink
from mesh import redis_keys
from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import (
    LONG,
    Reference,
    User,
    balance,
    cost_of,
    tokens_so_far,
    wait_until,
    worker_lines,
)

CUT = 5.0
"""Seconds."""


@pytest.fixture
def link(stack: DevelopmentStack) -> Iterator[SlowLink]:
    """What the middle node reaches Redis through."""
    stack.processes.end("node-1")
    with SlowLink(stack.plan.redis_port, 0.0) as made:
        stack.start_node(1, (2, 4), options=["--redis", f"redis://127.0.0.1:{made.port}/0"])
        stack.wait_for_nodes(3)
        yield made
        stack.processes.end("node-1")
    stack.start_node(1, (2, 4))
    stack.wait_for_nodes(3)


@pytest.mark.parametrize("severed", [False, True], ids=["silent", "severed"])
@pytest.mark.parametrize("replica", [False, True], ids=["alone", "with a replica"])
def test_a_cut_of_five_seconds_costs_no_token(
    stack: DevelopmentStack,
    link: SlowLink,
    user: User,
    reference: Reference,
    redis_client: redis.Redis,
    severed: bool,
    replica: bool,
) -> None:
    prompt = "The with statement"
    resting = ""
    if replica:
        spare = stack.start_node(1, (2, 4), name="spare")
        stack.wait_for_nodes(4)
        started = next(line for line in spare.log.read_text().splitlines() if "_started" in line)
        resting = redis_keys.cooldown(json.loads(started)["node_id"])
        redis_client.set(resting, 1)  # until the route has begun at the other
    try:
        request_id = user.submit(prompt, max_tokens=LONG)
        wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
        redis_client.delete(resting)
        if severed:
            link.__exit__()
            time.sleep(CUT)
            link.__enter__()
        else:
            link.process.send_signal(signal.SIGSTOP)
            time.sleep(CUT)
            link.process.send_signal(signal.SIGCONT)
        job = user.ended(request_id)
        assert job["status"] == "completed"
        assert job["text"] == reference.text(prompt, LONG)
        ids = [event_id for event_id, _ in user.events(request_id)][:-1]
        assert ids == [str(number + 1) for number in range(job["tokens_generated"])]
        paid = cost_of(job)
        assert balance(stack, user.account, "available") == 1 - paid
        assert worker_lines(stack, "node_penalised", request_id)
        _, again, *_ = worker_lines(stack, "route_opened", request_id)
        if replica:
            assert '"reason": "silent"' in again
            assert '"kept": 2' in again
        # The node that was cut off is on the routes again.
        stack.wait_for_nodes(4 if replica else 3)
        assert user.generate(prompt)["text"] == reference.text(prompt)
    finally:
        if replica:
            stack.processes.end("spare")
            stack.wait_for_nodes(3)
