"""Somebody with an API key sends many requests at once, to several gateways, so that each is
counted before the others are; or ends them, so that what was held returns."""

import asyncio
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import update

from market.jobs import cancellation
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import KeySpending
from market.settings import Settings
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    Gateway,
    Job,
    all_nodes,
    open_gateway,
    problem,
    request_body,
)

PERIODS = ("day", "month", "total")


async def submit(
    gateway: Gateway, key: dict[str, str], idempotency_key: str | None = None
) -> httpx.Response:
    headers = ASYNC | key
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    return await gateway.client.post(GENERATE, json=request_body(), headers=headers)


async def hold_of(gateway: Gateway) -> Decimal:
    """What a job may cost."""
    return (await (await gateway.submit()).row()).hold_far


async def usage(gateway: Gateway, key: dict[str, str]) -> dict[str, Decimal]:
    data = (await gateway.client.get("/v1/key", headers=key)).json()["data"]
    names = ("usage", "usage_daily", "usage_monthly")
    return {name: Decimal(data[f"{name}_exact"]) for name in names}


async def check_books(gateway: Gateway) -> None:
    assert (await check_integrity(gateway.sessions)).findings == []


@pytest.mark.parametrize("period", PERIODS)
async def test_32_requests_at_once_at_two_gateways_stay_within_the_limit(
    make_settings: Callable[..., Settings], redis: Redis, period: str
) -> None:
    async with open_gateway(make_settings()) as first, open_gateway(make_settings()) as second:
        await first.announce(*all_nodes())
        await first.deposit("1")
        hold = await hold_of(first)
        limit = 5 * hold + hold / 2
        key = await first.key(**{f"limit_{period}_far": limit})
        answers = await asyncio.gather(
            *(submit(gateway, key) for gateway in (first, second) for _ in range(16))
        )
        accepted = [answer for answer in answers if answer.status_code == 202]
        assert len(accepted) == 5
        for answer in answers:
            if answer not in accepted:
                assert problem(answer, 402, "key_limit_reached")["limit"] == period
        assert set((await usage(first, key)).values()) == {5 * hold}
        await check_books(first)


async def test_the_wallets_other_callers_are_not_refused_for_it(gateway: Gateway) -> None:
    key = await gateway.key(limit_total_far=0)
    problem(await submit(gateway, key), 402, "key_limit_reached")
    assert (await submit(gateway, await gateway.key())).status_code == 202
    assert (await submit(gateway, {})).status_code == 202


async def test_what_a_job_does_not_cost_returns_to_the_limit(gateway: Gateway) -> None:
    hold = await hold_of(gateway)
    key = await gateway.key(limit_day_far=hold)

    async def job() -> Job:
        answer = await submit(gateway, key)
        assert answer.status_code == 202, answer.text
        problem(await submit(gateway, key), 402, "key_limit_reached")
        return Job(gateway, answer.json()["request_id"])

    failed = await job()
    await failed.fail()
    assert set((await usage(gateway, key)).values()) == {Decimal(0)}
    cancelled = await job()
    await cancellation.cancel(gateway.services, await cancelled.row())
    await cancelled.complete("cancelled")
    assert set((await usage(gateway, key)).values()) == {Decimal(0)}
    completed = await job()
    await completed.write("a", "b")
    await completed.complete()
    cost = (await completed.row()).total_cost_far
    assert cost is not None
    assert 0 < cost < hold
    assert set((await usage(gateway, key)).values()) == {cost}
    problem(await submit(gateway, key), 402, "key_limit_reached")
    await check_books(gateway)


async def test_a_failure_after_some_tokens_counts_what_was_delivered(gateway: Gateway) -> None:
    key = await gateway.key()
    job = Job(gateway, (await submit(gateway, key)).json()["request_id"])
    await job.write("a", "b")
    await job.fail()
    assert set((await usage(gateway, key)).values()) == {(await job.row()).total_cost_far}
    await check_books(gateway)


async def test_a_job_without_money_counts_nothing(gateway: Gateway) -> None:
    key = await gateway.key(OTHER_WALLET, limit_day_far=1)
    problem(await submit(gateway, key), 402, "insufficient_balance")
    assert set((await usage(gateway, key)).values()) == {Decimal(0)}


async def test_a_retry_by_idempotency_key_counts_once_and_is_not_refused(gateway: Gateway) -> None:
    hold = await hold_of(gateway)
    key = await gateway.key(limit_total_far=hold)
    at_once = await asyncio.gather(*(submit(gateway, key, "again") for _ in range(8)))
    later = await submit(gateway, key, "again")
    assert {answer.status_code for answer in [*at_once, later]} == {202}
    assert len({answer.json()["request_id"] for answer in [*at_once, later]}) == 1
    assert set((await usage(gateway, key)).values()) == {hold}


async def test_a_raised_limit_counts_for_the_next_request(gateway: Gateway) -> None:
    made = await gateway.client.post("/api/keys", json={"name": "app", "limit_day_far": "0"})
    key, path = made.json(), f"/api/keys/{made.json()['key_id']}"
    headers = {"Authorization": f"Bearer {key['key']}"}
    problem(await submit(gateway, headers), 402, "key_limit_reached")
    await gateway.client.patch(path, json={"limit_day_far": "1"})
    assert (await submit(gateway, headers)).status_code == 202
    await gateway.client.patch(path, json={"limit_day_far": "0"})
    problem(await submit(gateway, headers), 402, "key_limit_reached")


async def test_a_wrong_count_is_found(gateway: Gateway) -> None:
    """The integrity check compares keys with jobs."""
    key = await gateway.key()
    await submit(gateway, key)
    await check_books(gateway)
    async with gateway.sessions.begin() as db:
        await db.execute(update(KeySpending).values(committed=7))
    findings = (await check_integrity(gateway.sessions)).findings
    assert [finding.check for finding in findings] == ["keys_equal_jobs"]
    assert Decimal(findings[0].found) == 7
