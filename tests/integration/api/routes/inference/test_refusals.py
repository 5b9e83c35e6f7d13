"""Every wrong request to generate: its own code and sentence, and nothing held or written."""

import json
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from market.nodes import live_registry
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    GENERATE,
    OTHER_WALLET,
    SECRET,
    Gateway,
    all_nodes,
    node,
    problem,
    request_body,
    shared_database,
)

NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e400")


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: each test checks that it wrote nothing."""
    with shared_database(postgres) as url:
        yield url


@pytest.fixture(autouse=True)
def recursion_limit() -> Iterator[None]:
    """As in the gateway's own process: the development chain in this one has raised it."""
    raised = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(raised)


@pytest.fixture
async def gateway(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway, which has to be afterwards as it was before."""
    before = await gateway.books()
    yield gateway
    assert await gateway.books() == before


def changed(**changes: object) -> bytes:
    return json.dumps(request_body(**changes)).encode()


def raw(field: str, literal: str) -> bytes:
    """A body with a literal that Python's encoder would not write."""
    return changed(**{field: "@"}).replace(b'"@"', literal.encode())


WRONG_FIELDS = {
    "empty prompt": (changed(prompt=""), "prompt_empty"),
    "no prompt": (json.dumps({"model_id": MODEL_ID}).encode(), "prompt_missing"),
    "null prompt": (changed(prompt=None), "prompt_wrong_type"),
    "number as prompt": (changed(prompt=5), "prompt_wrong_type"),
    "list as prompt": (changed(prompt=[SECRET]), "prompt_wrong_type"),
    "lone surrogate in prompt": (changed(prompt=f"{SECRET} \ud800"), "prompt_wrong_type"),
    "oversized prompt": (changed(prompt=SECRET + "x" * 200_000), "prompt_too_long"),
    "prompt beyond the context": (changed(prompt=SECRET + " and" * 2000), "context_exceeded"),
    "max_tokens beyond the context": (changed(max_tokens=1024), "context_exceeded"),
    "no model": (json.dumps({"prompt": SECRET}).encode(), "model_id_missing"),
    "empty model": (changed(model_id=""), "model_id_empty"),
    "long model": (changed(model_id="m" * 256), "model_id_too_long"),
    "number as model": (changed(model_id=5), "model_id_wrong_type"),
    "max_tokens 0": (changed(max_tokens=0), "max_tokens_out_of_range"),
    "max_tokens negative": (changed(max_tokens=-1), "max_tokens_out_of_range"),
    "max_tokens huge": (changed(max_tokens=10**400), "max_tokens_out_of_range"),
    "max_tokens string": (changed(max_tokens="8"), "max_tokens_wrong_type"),
    "max_tokens float": (changed(max_tokens=8.5), "max_tokens_wrong_type"),
    "max_tokens true": (changed(max_tokens=True), "max_tokens_wrong_type"),
    "max_tokens null": (changed(max_tokens=None), "max_tokens_wrong_type"),
    "temperature below 0": (changed(temperature=-0.1), "temperature_out_of_range"),
    "temperature above 2": (changed(temperature=2.1), "temperature_out_of_range"),
    "temperature huge integer": (changed(temperature=10**400), "temperature_wrong_type"),
    "temperature string": (changed(temperature="0.7"), "temperature_wrong_type"),
    "temperature true": (changed(temperature=True), "temperature_wrong_type"),
    "top_p 0": (changed(top_p=0), "top_p_out_of_range"),
    "top_p negative": (changed(top_p=-1), "top_p_out_of_range"),
    "top_p above 1": (changed(top_p=1.01), "top_p_out_of_range"),
    "top_p list": (changed(top_p=[0.9]), "top_p_wrong_type"),
    "stream string": (changed(stream="true"), "stream_wrong_type"),
    "seed negative": (changed(seed=-1), "seed_out_of_range"),
    "seed too big": (changed(seed=2**63), "seed_out_of_range"),
    "seed float": (changed(seed=0.5), "seed_wrong_type"),
    "unknown tier": (changed(tier="gold"), "tier_unknown"),
    "tier number": (changed(tier=1), "tier_unknown"),
    "tier not offered yet": (changed(tier="premium"), "tier_unavailable"),
    "stop string": (changed(stop=SECRET), "stop_wrong_type"),
    "stop of numbers": (changed(stop=[5]), "stop_wrong_type"),
    "stop with an empty text": (changed(stop=[""]), "stop_empty"),
    "stop too long": (changed(stop=["x" * 65]), "stop_too_long"),
    "too many stops": (changed(stop=list("abcde")), "stop_too_many"),
    "unknown field": (changed(max_token=8), "unknown_field"),
    "a hundred thousand fields": (
        changed(**{f"f{number}": 0 for number in range(70_000)}),
        "too_many_fields",
    ),
    "prompt as a field": (changed(**{SECRET: 1}), "unknown_field"),
    "lone surrogate as a field": (changed(**{"\ud800": 1}), "body_wrong_type"),
    **{
        f"{field} {literal}": (raw(field, literal), f"{field}_not_finite")
        for field in ("temperature", "top_p")
        for literal in NOT_FINITE
    },
    **{
        f"{field} {literal}": (raw(field, literal), f"{field}_wrong_type")
        for field in ("max_tokens", "seed")
        for literal in NOT_FINITE
    },
}

NOT_AN_OBJECT = ["null", "5", '"text"', "[]", "true"]

NOT_JSON = {
    "prose": SECRET.encode(),
    "cut short": changed()[:-1],
    "two documents": changed() * 2,
    "not UTF-8": b'{"prompt": "\xff"}',
    "too deep": b"[" * 100_000,
    "integer of 5000 digits": b'{"max_tokens": ' + b"9" * 5000 + b"}",
}


def says_nothing_of_the_prompt(text: str) -> bool:
    return not any(word in text for word in SECRET.split())


@pytest.mark.parametrize(("body", "code"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
async def test_a_wrong_field_is_named(gateway: Gateway, body: bytes, code: str) -> None:
    answer = await gateway.client.post(
        GENERATE, content=body, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, code)
    assert says_nothing_of_the_prompt(answer.text)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_malformed_json(gateway: Gateway, body: bytes) -> None:
    answer = await gateway.client.post(
        GENERATE, content=body, headers={"Content-Type": "application/json"}
    )
    problem(answer, 400, "malformed_json")
    assert says_nothing_of_the_prompt(answer.text)


@pytest.mark.parametrize("body", NOT_AN_OBJECT)
async def test_a_body_that_is_no_object(gateway: Gateway, body: str) -> None:
    answer = await gateway.client.post(
        GENERATE, content=body, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, "body_wrong_type")


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data"])
async def test_a_body_that_does_not_say_it_is_json(
    gateway: Gateway, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await gateway.client.post(GENERATE, content=changed(), headers=headers)
    assert "application/json" in problem(answer, 422, "body_wrong_type")["detail"]


async def test_no_body(gateway: Gateway) -> None:
    problem(await gateway.client.post(GENERATE), 422, "body_wrong_type")


async def test_an_unknown_model_is_told_what_there_is(gateway: Gateway) -> None:
    answer = await gateway.client.post(GENERATE, json=request_body(model_id="far/other"))
    assert MODEL_ID in problem(answer, 404, "model_not_found")["detail"]


async def test_not_enough_money(gateway: Gateway) -> None:
    answer = await gateway.client.post(
        GENERATE, json=request_body(), headers=gateway.login(OTHER_WALLET)
    )
    assert "0.00082 FAR or more" in problem(answer, 402, "insufficient_balance")["detail"]


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_a_layer_without_a_node(gateway: Gateway, missing: int) -> None:
    gone = all_nodes()[missing]
    await live_registry.evict(gateway.redis, gone.node_id, gone.model_id)
    answer = await gateway.client.post(GENERATE, json=request_body())
    problem(answer, 503, "no_route")
    assert int(answer.headers["retry-after"]) > 0


async def test_larger_than_what_any_node_has_room_for(gateway: Gateway) -> None:
    await gateway.announce(node(1, kv_positions=64))
    refused = await gateway.client.post(GENERATE, json=request_body(max_tokens=64))
    assert "64 together" in problem(refused, 422, "room_exceeded")["detail"]


@pytest.mark.parametrize(
    "only", [{"trusted": False}, {"edge": False}], ids=["untrusted", "no edge"]
)
async def test_prompts_go_to_trusted_edges_only(gateway: Gateway, only: dict[str, bool]) -> None:
    await gateway.announce(node(0, **only))
    answer = await gateway.client.post(GENERATE, json=request_body())
    problem(answer, 503, "no_route")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("key", "code"),
    [("", "idempotency_key_empty"), ("k" * 256, "idempotency_key_too_long")],
    ids=["empty", "long"],
)
async def test_an_idempotency_key_of_the_wrong_length(
    gateway: Gateway, key: str, code: str
) -> None:
    answer = await gateway.client.post(
        GENERATE, json=request_body(), headers={"Idempotency-Key": key}
    )
    problem(answer, 422, code)


@pytest.mark.parametrize("key", [b"k\x00", b"caf\xe9", b"a\tb"], ids=["NUL", "latin-1", "tab"])
async def test_an_idempotency_key_that_is_not_plain_text(gateway: Gateway, key: bytes) -> None:
    answer = await gateway.client.post(
        GENERATE, json=request_body(), headers=[(b"Idempotency-Key", key)]
    )
    problem(answer, 422, "idempotency_key_malformed")
