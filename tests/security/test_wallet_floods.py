"""One wallet submits jobs, or reserves positions, without end, so that nothing is left for others,
and does so at once, so that each of its requests is counted before the others are."""

import asyncio

import httpx
import pytest

from market.ledger import spending_caps
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    WALLET,
    Gateway,
    problem,
    request_body,
)

MOST = 3


@pytest.fixture
def limited(gateway: Gateway) -> Gateway:
    """A gateway that allows a wallet few jobs in flight."""
    gateway.services.settings.limits.jobs_in_flight_per_wallet = MOST
    return gateway


async def submit(
    gateway: Gateway, wallet: str = WALLET, key: str | None = None, **changes: object
) -> httpx.Response:
    headers = ASYNC | gateway.login(wallet)
    if key is not None:
        headers["Idempotency-Key"] = key
    return await gateway.client.post(GENERATE, json=request_body(**changes), headers=headers)


async def test_no_more_jobs_are_in_flight_than_allowed_however_many_are_sent_at_once(
    limited: Gateway,
) -> None:
    answers = await asyncio.gather(*(submit(limited) for _ in range(4 * MOST)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == MOST
    for answer in answers:
        if answer not in accepted:
            problem(answer, 429, "too_many_in_flight")
            assert int(answer.headers["Retry-After"]) > 0


async def test_a_refused_job_leaves_nothing_behind(limited: Gateway) -> None:
    for _ in range(MOST):
        await limited.submit()
    before = await limited.books()
    problem(await submit(limited), 429, "too_many_in_flight")
    assert await limited.books() == before


async def test_another_wallet_is_not_refused_for_it(limited: Gateway) -> None:
    await limited.deposit(wallet=OTHER_WALLET)
    for _ in range(MOST):
        await limited.submit()
    assert (await submit(limited, OTHER_WALLET)).status_code == 202


async def test_a_job_that_has_ended_makes_room_for_the_next(limited: Gateway) -> None:
    jobs = [await limited.submit() for _ in range(MOST)]
    await jobs[0].complete()
    assert (await submit(limited)).status_code == 202
    await jobs[1].fail()
    assert (await submit(limited)).status_code == 202
    problem(await submit(limited), 429, "too_many_in_flight")


async def test_a_retry_by_idempotency_key_is_no_further_job(limited: Gateway) -> None:
    """Also where the first answer was never read, and where both are sent at once."""
    for _ in range(MOST - 1):
        await limited.submit()
    at_once = await asyncio.gather(*(submit(limited, key="again") for _ in range(5)))
    later = await submit(limited, key="again")
    assert {answer.status_code for answer in [*at_once, later]} == {202}
    assert len({answer.json()["request_id"] for answer in [*at_once, later]}) == 1


async def test_positions_in_flight_are_limited_however_many_jobs_reserve_them(
    gateway: Gateway,
) -> None:
    first = await gateway.submit(max_tokens=100)
    row = await first.row()
    used = row.prompt_tokens + row.max_tokens
    gateway.services.settings.limits.positions_in_flight_per_wallet = 3 * used
    answers = await asyncio.gather(*(submit(gateway, max_tokens=100) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [202, 202, 429, 429, 429, 429]


async def test_a_single_job_may_have_more_positions_than_many_together(gateway: Gateway) -> None:
    """Else a model with a long context could not be used to its end."""
    gateway.services.settings.limits.positions_in_flight_per_wallet = 10
    assert (await submit(gateway, max_tokens=100)).status_code == 202
    problem(await submit(gateway, max_tokens=1), 429, "too_many_in_flight")


async def test_a_wallet_whose_money_is_busy_keeps_no_other_from_its_turn(limited: Gateway) -> None:
    """Something moves a wallet's money for long, as many events of the chain might."""
    await limited.deposit(wallet=OTHER_WALLET)
    async with limited.sessions.begin() as db:
        await spending_caps.lock_wallet(db, WALLET)
        blocked = asyncio.gather(*(submit(limited) for _ in range(3)))
        await asyncio.sleep(0.1)
        assert (await submit(limited, OTHER_WALLET)).status_code == 202
        for answer in await blocked:
            problem(answer, 503, "unavailable")
    assert (await submit(limited)).status_code == 202
