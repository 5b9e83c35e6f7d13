"""A user sends schemas and tools that cost him little and a compiler much: time, memory, or the
process."""

import json
import subprocess
import sys

import pytest
from redis.asyncio import Redis

from market.errors import InvalidRequest
from market.jobs.structured_output.tools import tool_choice
from market.resources import Resources
from mesh.wire.refusal_codes import GRAMMAR_REFUSED
from tests.support.gateway.api import LAYERS
from tests.support.market.hostile_schemas import HOSTILE
from tests.support.market.scripted_generation import cools_down, generation, join


def test_no_schema_ends_a_process() -> None:
    """In a process with limits of time and memory, since a full stack ends it without a word."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.market.hostile_schemas"],
        capture_output=True,
        text=True,
        check=False,
    )
    became = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, f"after {len(became)} of {len(HOSTILE)}: {done.stderr[-500:]}"
    assert became.keys() == HOSTILE.keys()
    assert became["a chain as deep as it may be"] == "followed"
    assert became["as many optional properties as there may be"] == "followed"
    for name in ("a chain of objects", "multiples", "a long pattern", "many optional properties"):
        assert became[name] == "refused by the gateway"


def test_tools_share_the_limits_of_a_request() -> None:
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"f{number}",
                "parameters": {"properties": {"n": {"type": "integer", "multipleOf": 997}}},
            },
        }
        for number in range(100)
    ]
    assert len(tool_choice(tools[:10], "auto").functions) == 10
    with pytest.raises(InvalidRequest, match=r"^/tools/10/"):
        tool_choice(tools, "auto")


def test_what_a_schema_says_is_not_quoted_without_end() -> None:
    schema = {"type": "x" * 50_000}
    with pytest.raises(InvalidRequest) as raised:
        tool_choice(
            [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"properties": {"a": schema}}},
                }
            ],
            "auto",
        )
    assert len(json.dumps(raised.value.problem())) < 1000


async def test_a_grammar_that_an_edge_cannot_follow_is_nobodys_fault(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, "other edge", (0, 2), ms=50)
    await join(redis, "last", (2, LAYERS))
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", "last"]
        await made.refuse("edge", GRAMMAR_REFUSED)
        ended = await made.ended()
    assert (ended.status, ended.error_code, ended.epoch) == ("failed", GRAMMAR_REFUSED, 1)
    assert await cools_down(redis, "edge", "other edge", "last") == [False] * 3


async def test_a_node_without_a_grammar_cannot_end_a_generation_by_one(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, "liar", (2, LAYERS))
    await join(redis, "honest", (2, LAYERS), ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", "liar"]
        await made.refuse("liar", GRAMMAR_REFUSED)
        assert await made.next_route() == ["edge", "honest"]
        await made.finish()
    assert await cools_down(redis, "liar") == [True]
