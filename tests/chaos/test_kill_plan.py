"""Every text right and every charge exact, whatever is killed: two replicas of each span, two
workers; API, workers, nodes and Redis are killed fifty times within sixty jobs."""

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import Reference, User, at_once, balance, cost_of, wait_until
from tests.support.kill_plan import KillPlan

JOBS, KILLS = 60, 50
TOKENS = 96
LIMIT = 600.0
"""Seconds within which a request is answered in the end, and a job ends."""


@pytest.fixture
def replicas(stack: DevelopmentStack) -> Iterator[DevelopmentStack]:
    """The mesh with two nodes for each span."""
    for stage in range(3):
        stack.start_node(stage, (2 * stage, 2 * stage + 2), name=f"node-{stage}b")
    stack.wait_for_nodes(6)
    yield stack
    for stage in range(3):
        stack.processes.end(f"node-{stage}b")
    stack.wait_for_nodes(3)


def insist(ask: Callable[[], httpx.Response]) -> Any:
    """The JSON answer of a request that is put again until it is answered."""
    give_up = time.monotonic() + LIMIT
    while True:
        try:
            answer = ask()
            if answer.is_success:
                return answer.json()
            assert answer.status_code in (429, 502, 503), answer.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up, "never answered"
        time.sleep(0.3)


def submit(user: User, number: int) -> str:
    request_id: str = insist(
        lambda: user.http.post(
            "/api/inference/distributed/generate",
            json=user.body(f"The number {number} is", max_tokens=TOKENS),
            headers={"Prefer": "respond-async", "Idempotency-Key": f"job {number}"},
        )
    )["request_id"]
    return request_id


def ended(user: User, request_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = insist(lambda: user.http.get(f"/api/inference/jobs/{request_id}"))
        return job if job["status"] in ("completed", "failed") else None

    found: dict[str, Any] = wait_until(look, f"the end of {request_id}", LIMIT)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_every_text_is_right_and_every_charge_exact(
    replicas: DevelopmentStack, make_user: Callable[..., User], reference: Reference, seed: int
) -> None:
    user = make_user()
    numbers = [100 * seed + index for index in range(JOBS)]
    plan = KillPlan(replicas, seed, KILLS)
    try:
        request_ids = at_once_beside(plan, lambda index: submit(user, numbers[index]))
        jobs = [ended(user, request_id) for request_id in request_ids]
    finally:
        plan.stop()
    for number, job in zip(numbers, jobs, strict=True):
        assert job["status"] == "completed", job
        assert job["text"] == reference.text(f"The number {number} is", TOKENS)
        assert Decimal(job["cost_far_exact"]) == cost_of(job)
        events = user.events(job["request_id"])
        assert [event_id for event_id, _ in events[:-1]] == [
            str(token + 1) for token in range(job["tokens_generated"])
        ]
        assert "".join(data["token"] for _, data in events[:-1]) == job["text"]
    assert balance(replicas, user.account, "available") == 1 - sum(map(cost_of, jobs))
    assert balance(replicas, user.account, "held") == 0
    assert sum(plan.killed.values()) > KILLS // 2, plan.killed
    unasked = [each for each in plan.died if not each[0].startswith("node")]
    assert not unasked, unasked
    replicas.wait_for_nodes(6)


def at_once_beside(plan: KillPlan, work: Callable[[int], str]) -> list[str]:
    """The jobs' ids, in the order of their numbers: submitted over the time of the plan."""

    def one(index: int) -> Any:
        if index == JOBS:
            return plan.run()
        time.sleep(index)
        return work(index)

    found: list[str] = at_once(JOBS + 1, one)[:JOBS]
    return found
