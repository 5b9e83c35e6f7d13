"""More generations than there is room for."""

from collections.abc import Callable, Iterator

import pytest

from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import Reference, User, measured, query, wait_until

MANY, ROOM = 100, 10
TOKENS = 40
BLOCKS = 3
"""Of 16 positions, for a prompt of at most 8 tokens and 40 new ones."""

POSITION = 2 * 2 * (32 + 32) * 4
"""Bytes: 2 layers, 2 KV heads, keys and values of 32, float32."""


@pytest.fixture
def small(stack: DevelopmentStack) -> Iterator[str]:
    """The middle node has room for ten generations at once."""
    stack.processes.end("node-1")
    room = ROOM * BLOCKS * 16 * POSITION
    stack.start_node(1, (2, 4), options=["--kv-gb", str(room / 1e9)])
    stack.wait_for_nodes(3)
    yield "node-1"
    stack.processes.end("node-1")
    stack.start_node(1, (2, 4))
    stack.wait_for_nodes(3)


def test_a_hundred_generations_queue_for_room_for_ten(
    stack: DevelopmentStack,
    small: str,
    make_user: Callable[..., User],
    user: User,
    reference: Reference,
) -> None:
    """That they are computed in time is known from a generation before."""
    make_user().generate("Item", max_tokens=TOKENS)
    budget = measured(stack, small, "far_node_kv_budget_bytes")
    assert budget == ROOM * BLOCKS * 16 * POSITION
    prompts = [f"Item {number}" for number in range(MANY)]
    jobs = [user.submit(prompt, max_tokens=TOKENS) for prompt in prompts]
    used: list[float] = []

    def all_ended() -> bool:
        used.append(measured(stack, small, "far_node_kv_used_bytes"))
        rows = query(
            stack,
            "SELECT count(*) FROM inference_sessions "
            f"WHERE user_wallet = '{user.account.address.lower()}' "
            "AND status IN ('completed', 'failed')",
        )
        return int(rows[0]) == MANY

    wait_until(all_ended, "the end of all", seconds=150)
    assert max(used) == budget, "it was full at times, and never more"
    for prompt, job in zip(prompts, map(user.job, jobs), strict=True):
        assert job["status"] == "completed"
        assert job["text"] == reference.text(prompt, TOKENS)
