"""A draft model beside the edge, in a node's own process."""

from collections.abc import Iterator

import pytest

from stack.development_stack import DevelopmentStack
from tests.conftest import DEMO_MODEL
from tests.e2e.conftest import Reference, User, measured

PROMPTS = ("The lambda statement", "Sets are", "Modules may")
TOKENS = 48


@pytest.fixture
def guessing(stack: DevelopmentStack) -> Iterator[str]:
    """The edge has a draft model: the served one itself, whose guesses are always right."""
    stack.processes.end("node-0")
    stack.start_node(0, (0, 2), options=["--draft", str(DEMO_MODEL)])
    stack.wait_for_nodes(3)
    yield "node-0"
    stack.processes.end("node-0")
    stack.start_node(0, (0, 2))
    stack.wait_for_nodes(3)


def test_guesses_of_a_draft_model_change_no_token(
    stack: DevelopmentStack, guessing: str, user: User, reference: Reference
) -> None:
    for prompt in PROMPTS:
        job = user.ended(user.submit(prompt, max_tokens=TOKENS), seconds=60)
        assert job["text"] == reference.text(prompt, TOKENS)
    guessed = measured(stack, guessing, "far_node_guessed_tokens_total")
    accepted = measured(stack, guessing, "far_node_accepted_tokens_total")
    assert guessed >= TOKENS
    assert accepted > 0.9 * guessed, "only the last of a generation go beyond its end"
