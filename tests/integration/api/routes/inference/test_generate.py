"""An accepted generation: what is written, all of it or nothing, and once for each key."""

import asyncio
from dataclasses import replace
from decimal import Decimal

import httpx
import pytest
import redis.exceptions
from sqlalchemy import make_url, select
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Strip

from market import ledger, outbox
from market.nodes import live_registry
from market.outbox import Outbox
from market.prompt_vault import PromptText
from market.routing.skip_counts import skips_of
from mesh.redis_keys import WORKER_QUEUE
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    SECRET,
    WALLET,
    Gateway,
    Job,
    all_nodes,
    node,
    problem,
    request_body,
)

HOLD = Decimal("0.00092")
"""Of a request for 8 tokens, with 12 tokens of prompt."""

NASTY_PROMPTS = {
    "NUL": "\x00 and \x00",
    "control characters": "\x01\x1b[31m\x7f",
    "emoji": "👩‍👩‍👧‍👦 and 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "right to left": "\u202e\u05e9\u05dc \u0639\u0644",
    "only whitespace": " \n\t ",
    "byte order mark": "\ufeffdef",
    "noncharacter": "\uffff\U0010ffff",
    "SQL": "'; DROP TABLE inference_sessions; --",
    "one long word": "a" * 600,
}


async def ask(gateway: Gateway, key: str | None = None, **changes: object) -> httpx.Response:
    """An asynchronous request."""
    headers = ASYNC if key is None else ASYNC | {"Idempotency-Key": key}
    return await gateway.client.post(GENERATE, json=request_body(**changes), headers=headers)


async def decrypted(gateway: Gateway, job: Job) -> tuple[str, list[str]]:
    """Prompt and stop texts, as a worker opens them."""
    row = await job.row()
    assert row.request_cipher is not None
    opened = PromptText.from_bytes(gateway.services.vault.decrypt(job.id, row.request_cipher))
    assert len(opened.token_ids) == row.prompt_tokens
    tokenizer = gateway.services.catalog.get(MODEL_ID).tokenizer
    return tokenizer.decode(opened.token_ids), opened.stop


async def test_session_hold_and_outbox_are_written_and_a_worker_is_woken(gateway: Gateway) -> None:
    job = await gateway.submit(max_tokens=8, temperature=0.5, top_p=0.8, seed=7, stop=["\n"])
    row = await job.row()
    assert row.status == "pending"
    assert (row.user_wallet, row.model_id, row.tier) == (WALLET, MODEL_ID, "standard")
    assert (row.max_tokens, row.temperature, row.top_p, row.seed) == (8, 0.5, 0.8, 7)
    assert row.price_per_prompt_token_far == Decimal("0.00001")
    assert row.price_per_cached_prompt_token_far == Decimal("0.000001")
    assert row.hold_far == HOLD == Decimal("0.0008") + row.prompt_tokens * Decimal("0.00001")
    assert await gateway.balance(ledger.held(WALLET)) == HOLD
    assert await gateway.balance(ledger.available(WALLET)) == 1 - HOLD
    async with gateway.sessions() as db:
        sent = (await db.scalars(select(Outbox))).one()
    assert (sent.task, sent.argument) == ("supervise", job.id)
    assert sent.sent_at is not None
    assert await gateway.redis.zcard(WORKER_QUEUE) == 1


async def test_the_answer_says_where_to_look(gateway: Gateway) -> None:
    answer = await ask(gateway)
    accepted = answer.json()
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == accepted["poll_url"]
    assert accepted["status"] == "pending"
    for url in (accepted["poll_url"], accepted["events_url"].removesuffix("/events")):
        polled = (await gateway.client.get(url)).json()
        assert polled.get("request_id") == accepted["request_id"], polled


@pytest.mark.parametrize("prefer", ["respond-async, wait=10", "Respond-Async", "x, respond-async"])
async def test_ways_to_write_the_preference(gateway: Gateway, prefer: str) -> None:
    answer = await gateway.client.post(GENERATE, json=request_body(), headers={"Prefer": prefer})
    assert answer.status_code == 202


async def test_without_a_seed_each_generation_has_another(gateway: Gateway) -> None:
    jobs = [await gateway.submit() for _ in range(2)]
    first, second = [(await job.row()).seed for job in jobs]
    assert first != second


async def test_the_prompt_is_nowhere_in_the_database(gateway: Gateway, postgres: Postgres) -> None:
    job = await gateway.submit(prompt=SECRET, stop=["zeppelin"])
    assert await decrypted(gateway, job) == (SECRET, ["zeppelin"])
    database = make_url(gateway.services.settings.database_url).database
    assert database is not None
    dump = postgres.dump(database)
    assert job.id.encode() in dump
    for word in ["xylophone", "quokka", "zeppelin"]:
        assert word.encode() not in dump
        assert word.encode().hex().encode() not in dump


@pytest.mark.parametrize("prompt", NASTY_PROMPTS.values(), ids=NASTY_PROMPTS)
async def test_any_text_is_a_prompt(gateway: Gateway, prompt: str) -> None:
    assert await decrypted(gateway, await gateway.submit(prompt=prompt)) == (prompt, [])


async def test_a_prompt_without_a_token_is_empty(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokenizers strip white space."""
    stripping = Tokenizer(WordLevel({"word": 0}))
    stripping.normalizer = Strip()
    model = replace(gateway.services.catalog.get(MODEL_ID), tokenizer=stripping)
    monkeypatch.setattr(gateway.services.catalog, "get", lambda _: model)
    problem(await ask(gateway, prompt=" \n"), 422, "prompt_empty")


async def test_a_job_that_fills_the_context_exactly_is_taken(gateway: Gateway) -> None:
    row = await (await gateway.submit(max_tokens=8)).row()
    assert (await ask(gateway, max_tokens=1024 - row.prompt_tokens)).status_code == 202
    beyond = await ask(gateway, max_tokens=1024 - row.prompt_tokens + 1)
    problem(beyond, 422, "context_exceeded")


async def test_what_fails_last_takes_everything_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Session and outbox row are written by then; they go with the transaction."""
    before = await gateway.books()

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("after the rows")

    monkeypatch.setattr(ledger, "hold", fail)
    with pytest.raises(RuntimeError, match="after the rows"):
        await ask(gateway)
    assert await gateway.books() == before


async def test_a_job_is_accepted_although_nobody_can_be_woken(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis dies between the commit and the wake-up: the outbox keeps it."""

    async def fail(*_: object, **__: object) -> None:
        raise redis.exceptions.ConnectionError

    with monkeypatch.context() as dead:
        dead.setattr(outbox, "enqueue", fail)
        answer = await ask(gateway)
    assert answer.status_code == 202
    assert await gateway.redis.zcard(WORKER_QUEUE) == 0
    assert await outbox.send_outbox(gateway.sessions, gateway.services.queue) == 1
    assert await gateway.redis.zcard(WORKER_QUEUE) == 1


async def test_a_wallet_cannot_spend_more_than_it_has_at_once(gateway: Gateway) -> None:
    """1 FAR, and 32 requests of up to 0.1 FAR and the prompt's 0.00012."""
    answers = await asyncio.gather(*(ask(gateway, max_tokens=1000) for _ in range(32)))
    assert sorted(answer.status_code for answer in answers) == [202] * 9 + [402] * 23
    counts, balances = await gateway.books()
    assert balances[ledger.available(WALLET)] == Decimal("0.09892")
    assert balances[ledger.held(WALLET)] == 9 * Decimal("0.10012")
    assert (counts["inference_sessions"], counts["outbox"]) == (9, 9)


async def test_a_key_gives_the_same_job_again(gateway: Gateway) -> None:
    first = (await ask(gateway, "key")).json()
    books = await gateway.books()
    for each in all_nodes():  # and it needs no route, nor money, the second time
        await live_registry.evict(gateway.redis, each.node_id, each.model_id)
    again = await ask(gateway, "key")
    assert (again.status_code, again.json()) == (202, first)
    assert await gateway.books() == books


async def test_a_key_gives_the_same_job_to_requests_at_once(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(ask(gateway, "key") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    counts, balances = await gateway.books()
    assert balances[ledger.held(WALLET)] == HOLD
    assert counts == {"inference_sessions": 1, "ledger_transactions": 2, "outbox": 1}


@pytest.mark.parametrize(
    "change", [{"prompt": "other"}, {"max_tokens": 9}, {"stop": ["x"]}, {"stream": True}]
)
async def test_a_key_is_for_one_request(gateway: Gateway, change: dict[str, object]) -> None:
    await ask(gateway, "key")
    books = await gateway.books()
    problem(await ask(gateway, "key", **change), 409, "idempotency_conflict")
    assert await gateway.books() == books


async def test_a_key_is_for_one_of_the_requests_at_once(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(ask(gateway, "key", seed=seed) for seed in range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    assert await gateway.balance(ledger.held(WALLET)) == HOLD


async def test_defaults_written_out_are_the_same_request(gateway: Gateway) -> None:
    first = await ask(gateway, "key")
    again = await ask(gateway, "key", temperature=0.7, top_p=0.9, tier="standard")
    assert again.json() == first.json()


async def test_a_key_belongs_to_one_wallet(gateway: Gateway) -> None:
    await gateway.deposit("1", OTHER_WALLET)
    mine = await ask(gateway, "key", prompt="mine")
    gateway.client.headers.update(gateway.login(OTHER_WALLET))
    theirs = await ask(gateway, "key", prompt="theirs")
    assert (mine.status_code, theirs.status_code) == (202, 202)
    assert mine.json()["request_id"] != theirs.json()["request_id"]


async def test_a_refused_request_leaves_its_key_free(gateway: Gateway) -> None:
    problem(await ask(gateway, "key", max_tokens=2000), 422, "context_exceeded")
    assert (await ask(gateway, "key")).status_code == 202


async def test_who_asks_for_more_than_the_price_is_no_route(gateway: Gateway) -> None:
    """Nor is its memory any use: 0.0001 FAR a token is the model's price."""
    dear = {"start_layer": 2, "end_layer": 4, "min_price": Decimal("0.0002")}
    await gateway.announce(node(1, kv_positions=64, min_price=Decimal("0.0001")))
    await gateway.announce(node(3, kv_positions=1000, **dear))
    refused = problem(await ask(gateway, max_tokens=64), 422, "room_exceeded")
    assert "64 together" in refused["detail"]
    await live_registry.evict(gateway.redis, "node_1", MODEL_ID)
    before = await gateway.books()
    problem(await ask(gateway), 503, "no_route")
    assert await skips_of(gateway.redis, "node_3") == {"price_above_market": 1}
    assert await skips_of(gateway.redis, "node_0") == {"span_meets_nobody": 1}
    assert await gateway.books() == before
    [offer] = (await gateway.client.get("/api/inference/models")).json()["models"]
    assert (offer["available"], offer["avg_latency_ms"]) == (False, None)
    await gateway.announce(node(3, **dear | {"min_price": Decimal("0.0001")}))
    assert (await ask(gateway)).status_code == 202


async def test_a_larger_node_of_the_same_layers_is_enough(gateway: Gateway) -> None:
    await gateway.announce(node(1, kv_positions=64))
    problem(await ask(gateway, max_tokens=64), 422, "room_exceeded")
    await gateway.announce(node(3, start_layer=2, end_layer=4, kv_positions=1000))
    assert (await ask(gateway, max_tokens=64)).status_code == 202
