"""Nodes that the platform places and moves, while they serve."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from stack.development_stack import DevelopmentStack
from stack.plan import Plan
from stack.servers import free_port
from tests.e2e.conftest import FAST, Reference, User, at_once, query, wait_until
from tests.support.folders import server_folder

pytestmark = pytest.mark.slow

LONG = 700
SMALL = ("--memory-gb", "0.3", "--kv-gb", "0.1")
"""Room for all layers of the demo model, also twice."""

EAGER = {
    "FAR_PLACEMENT__INTERVAL": "1",
    "FAR_PLACEMENT__PAUSE": "0",
    "FAR_PLACEMENT__HALF_LIFE": "1",
    "FAR_PLACEMENT__POSITIONS": "4096",
    # With so short a half-life, what else runs on the machine looks like a change of speed.
    "FAR_PLACEMENT__THRESHOLD": "0.5",
}


@pytest.fixture(scope="module")
def stack() -> Iterator[DevelopmentStack]:
    """One node, which the platform has placed; room for others."""
    with server_folder("far-e2e-") as folder:
        plan = Plan(
            folder=folder / "data",
            api_port=free_port(),
            redis_port=free_port(),
            chain_port=free_port(),
            nodes=1,
            workers=2,
            placed=True,
            node_options=SMALL,
            environment=FAST | EAGER,
        )
        with DevelopmentStack(plan) as running:
            running.add_wallets(2)
            yield running


def spans(stack: DevelopmentStack) -> list[tuple[int, int]]:
    """Of the nodes that are on the routes."""
    url = f"{stack.plan.api_url}/api/discovery/nodes/active/{stack.plan.model_id}"
    served = [node["layers_served"] for node in httpx.get(url).json()["nodes"]]
    return sorted((layers[0], layers[-1] + 1) for layers in served)


def moves(stack: DevelopmentStack) -> list[str]:
    return query(stack, "SELECT state FROM placement_moves ORDER BY id")


def test_a_lone_node_gets_all_layers(
    stack: DevelopmentStack, user: User, reference: Reference
) -> None:
    prompt = "The for statement"
    assert spans(stack) == [(0, 6)]
    assert user.generate(prompt)["text"] == reference.text(prompt)


def test_who_joins_takes_over_a_part_while_generations_run(
    stack: DevelopmentStack, make_user: Callable[..., User], reference: Reference
) -> None:
    user = make_user()
    prompts = [f"The number {number} is" for number in range(4)]
    before = len(moves(stack))
    running = [user.submit(prompt, max_tokens=LONG) for prompt in prompts]
    wait_until(lambda: all(user.job(r)["tokens_generated"] > 3 for r in running), "some tokens")
    stack.start_node(1, None)
    wait_until(lambda: moves(stack)[before:] == ["switched"], "the move")
    later = at_once(2, lambda n: user.generate(f"After the move, {n}"))
    for number, result in enumerate(later):
        assert result["text"] == reference.text(f"After the move, {number}")
        assert len(result["nodes_used"]) == 2
    for prompt, request_id in zip(prompts, running, strict=True):
        job = user.ended(request_id)
        assert (job["status"], job["error"]) == ("completed", None)
        assert job["text"] == reference.text(prompt, LONG)
    assert begun_again(stack) == []


def test_who_is_killed_is_replaced_by_a_move(
    stack: DevelopmentStack, user: User, reference: Reference
) -> None:
    """A job that finds no route waits until the node that is left has loaded all layers."""
    wait_until(lambda: {"proposed", "loading"}.isdisjoint(moves(stack)), "no move under way")
    before = len(moves(stack))
    child = stack.processes.children.pop("node-1")
    child.process.kill()
    child.process.wait()
    prompt = "The while statement"
    assert user.generate(prompt)["text"] == reference.text(prompt)
    assert moves(stack)[before:] == ["switched"]
    assert spans(stack) == [(0, 6)]


def begun_again(stack: DevelopmentStack) -> list[str]:
    """Why generations got another route than their first one."""
    lines = [
        json.loads(line)
        for log in (stack.plan.folder / "logs").glob("worker-*.log")
        for line in log.read_text().splitlines()
        if line.startswith("{")
    ]
    return [
        line["reason"]
        for line in lines
        if line["event"] == "route_opened" and line["reason"] != "first"
    ]
