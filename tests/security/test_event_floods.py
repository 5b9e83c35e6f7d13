"""A stranger's contract makes so many events of the escrow that no run of the indexer comes to an
end, and nobody's deposits and withdrawals count any more."""

import asyncio
import datetime as dt
import random
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import event, func, select, text, update
from structlog.testing import capture_logs

from market import ledger
from market.chain.errors import AnswerTooLarge
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader
from market.escrow.tables import ChainCursor, ChainEvent
from market.ledger.tables import LedgerTransaction, SpendingCap
from market.money import from_units
from market.resources import Resources
from tests.support.chain.escrow import FAR, Actions, Killed, assert_ledger_agrees, left
from tests.support.chain.flood import Flood
from tests.support.gateway.api import ASYNC, GENERATE, Gateway, problem, request_body
from workers.chain_indexer import ledger_effects
from workers.chain_indexer.indexer import follow_chain, index_events

WALLET, CONTRACT = "0x" + "ab" * 20, "0x" + "cd" * 20


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.chain_indexer.event_store.EVENTS_AT_ONCE", 20)


@contextmanager
def ended_after(resources: Resources, statements: int) -> Iterator[None]:
    """End the run after so many statements, as arq does after so many seconds."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done > statements:
            raise Killed

    sync = resources.engine.sync_engine
    event.listen(sync, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(sync, "before_cursor_execute", count)


async def applied(resources: Resources) -> int:
    async with resources.sessions() as db:
        return int(
            await db.scalar(
                select(func.count()).select_from(ChainEvent).where(ChainEvent.status == "applied")
            )
            or 0
        )


async def index_in_short_runs(resources: Resources, reader: EscrowEventReader) -> int:
    """Returns how many runs were ended before one was not."""
    for runs in range(50):
        try:
            with ended_after(resources, 100):
                await index_events(resources, reader)
            return runs
        except Killed:
            continue
    raise AssertionError("no run came to its end")


@pytest.mark.slow
async def test_each_run_makes_progress(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """Whenever it is ended, also within a block; and what comes after the flood counts."""
    flood = Flood(actions, actions.user(), 400)
    await index_events(chain_resources, reader)
    before = await applied(chain_resources)
    assert flood.run() == 400
    honest = actions.user(far=3)
    assert await index_in_short_runs(chain_resources, reader) > 2
    assert await left(chain_resources, honest) == (3, 0, 3)
    assert await applied(chain_resources) == before + 402
    await assert_ledger_agrees(chain_resources, reader)


async def test_requests_that_replace_each_other_are_posted_once_a_transaction(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    flood = Flood(actions, actions.user(), 100)
    flood.run()
    await index_events(chain_resources, reader)
    async with chain_resources.sessions() as db:
        postings = await db.scalar(
            select(func.count())
            .select_from(LedgerTransaction)
            .where(LedgerTransaction.kind == "request_withdrawal")
        )
        set_aside = await ledger.balance(db, ledger.withdrawing(flood.address.lower()))
    assert postings in (5, 6), "of 100, twenty at a time"
    assert set_aside == from_units(1)


async def test_a_reorg_takes_back_a_block_that_is_applied_in_part(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    flood = Flood(actions, actions.user(), 200)
    user = actions.user(far=3)
    await index_events(chain_resources, reader)
    before = await applied(chain_resources)
    mark = actions.ask("evm_snapshot")
    flood.run()
    with pytest.raises(Killed), ended_after(chain_resources, 80):
        await index_events(chain_resources, reader)
    assert before < await applied(chain_resources) < before + 200
    actions.ask("evm_revert", mark)
    actions.pass_by(3)
    await index_in_short_runs(chain_resources, reader)
    assert await applied(chain_resources) == before
    async with chain_resources.sessions() as db:
        assert await ledger.balance(db, ledger.withdrawing(flood.address.lower())) == 0
    actions.call(user, "requestWithdrawal", FAR)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (2, 1, 3)
    await assert_ledger_agrees(chain_resources, reader)


@pytest.mark.slow
async def test_a_whole_flood_is_taken_back_in_short_runs(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    flood = Flood(actions, actions.user(), 200)
    await index_events(chain_resources, reader)
    before = await applied(chain_resources)
    mark = actions.ask("evm_snapshot")
    flood.run()
    actions.user()
    await index_events(chain_resources, reader)
    assert await applied(chain_resources) == before + 202
    actions.ask("evm_revert", mark)
    actions.pass_by(8)
    await index_in_short_runs(chain_resources, reader)
    assert await applied(chain_resources) == before
    await assert_ledger_agrees(chain_resources, reader)


async def test_nobodys_hold_waits_for_a_flood(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """Not even that of a wallet with an event in the same range of blocks."""
    flood = Flood(actions, actions.user(), 600)
    await index_events(chain_resources, reader)
    victim = actions.user(far=5)
    flood.run()
    indexing = asyncio.create_task(index_events(chain_resources, reader))
    while (await left(chain_resources, victim))[0] < 5:
        await asyncio.sleep(0)
    async with chain_resources.sessions.begin() as db:
        await ledger.hold(db, job="one", wallet=victim.address.lower(), amount=Decimal(1))
    assert not indexing.done()
    await indexing


async def test_a_block_too_large_for_an_answer_is_read_by_its_receipts(
    actions: Actions, reader: EscrowEventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = await reader.chain.head()
    last = head - 1
    before = (await reader.hashes([last]))[last]
    assert before is not None
    Flood(actions, actions.user(), 50).run()
    by_logs = await reader.read_after(Block(last, before))

    async def refuse(*_: object) -> Any:
        raise AnswerTooLarge("More than is read.")

    monkeypatch.setattr(EscrowEventReader, "_get_logs", refuse)
    by_receipts = await reader.read_after(Block(last, before))
    assert by_receipts == by_logs
    assert by_logs is not None
    assert len(by_logs.events) > 50


async def test_a_long_history_of_caps_is_not_read(resources: Resources) -> None:
    """A wallet has asked for a lower cap and cancelled that, for years and by the thousand."""
    count = 20_000
    async with resources.sessions.begin() as db:
        await db.execute(
            text(
                """
                INSERT INTO chain_events (transaction_hash, log_index, contract, block_number,
                    block_hash, name, wallet_address, arguments, status)
                SELECT '0x' || lpad(to_hex(n), 64, '0'), 0, CAST(:contract AS varchar), n, '0x1',
                    CASE n % 2 WHEN 0 THEN 'CapLoweringRequested' ELSE 'CapLoweringCancelled' END,
                    CAST(:wallet AS varchar), '{"maximum": "1"}', 'applied'
                FROM generate_series(1, :count) AS n
                """
            ),
            {"contract": CONTRACT, "wallet": WALLET, "count": count},
        )
        await db.execute(text("ANALYZE chain_events"))
        plan = await db.scalar(
            text(f"EXPLAIN (ANALYZE, FORMAT JSON) {ledger_effects.NEWEST_CAP_EVENTS.text}"),
            {
                "contract": CONTRACT,
                "wallets": [WALLET],
                "names": list(ledger_effects.CAP_EVENTS),
            },
        )
    [root] = plan
    assert max(rows_of(root["Plan"])) <= 8


def rows_of(plan: dict[str, Any]) -> Iterator[float]:
    """Rows that each step of a query has read."""
    yield plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    for step in plan.get("Plans", []):
        yield from rows_of(step)


@pytest.mark.parametrize("seed", range(5))
async def test_the_newest_events_tell_the_cap(resources: Resources, seed: int) -> None:
    dice = random.Random(seed)
    count = dice.randrange(1, 12)
    pending = dice.randrange(count + 1)
    events = [
        EscrowEvent(
            transaction_hash=f"0x{number:064x}",
            log_index=0,
            block_number=number,
            block_hash="0x1",
            name=dice.choice(ledger_effects.CAP_EVENTS),
            arguments={"user": WALLET, "maximum": str(dice.randrange(100) * FAR)},
        )
        for number in range(count)
    ]
    history = [(event.name, event.arguments) for event in events]
    async with resources.sessions.begin() as db:
        db.add_all(
            ChainEvent(
                transaction_hash=event.transaction_hash,
                log_index=0,
                contract=CONTRACT,
                block_number=event.block_number,
                block_hash=event.block_hash,
                name=event.name,
                wallet_address=WALLET,
                arguments=event.arguments,
                status="pending" if event.block_number >= pending else "applied",
            )
            for event in events
        )
        await db.flush()
        await ledger_effects.sync_caps(db, CONTRACT, events)
        signed = await db.scalar(select(SpendingCap.signed).where(SpendingCap.wallet == WALLET))
    seen, counted = (ledger_effects.effective_cap(part) for part in (history, history[:pending]))
    assert signed == from_units(min(seen, counted))


@pytest.fixture
async def indexed_gateway(gateway: Gateway) -> Gateway:
    """A gateway with a contract whose events were read a moment ago."""
    gateway.services.settings.payments.escrow_contract = CONTRACT
    async with gateway.services.sessions.begin() as db:
        db.add(ChainCursor(contract=CONTRACT, next_block=1))
    return gateway


@pytest.mark.parametrize(("hours", "status"), [(5, 202), (7, 503)])
async def test_an_index_that_stands_still_cannot_be_spent_against(
    indexed_gateway: Gateway, hours: int, status: int
) -> None:
    until = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)
    async with indexed_gateway.services.sessions.begin() as db:
        await db.execute(update(ChainCursor).values(indexed_until=until))
    answer = await indexed_gateway.client.post(
        GENERATE,
        json=request_body(),
        headers=ASYNC | indexed_gateway.login(),
    )
    if status == 503:
        problem(answer, 503, "chain_index_behind")
        assert int(answer.headers["Retry-After"]) > 0
    else:
        assert answer.status_code == status


async def test_the_index_says_how_old_it_is(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    actions.user()
    await follow_chain({"resources": chain_resources})
    assert 0 <= (REGISTRY.get_sample_value("far_mesh_chain_index_age_seconds") or -1) < 600
    chain_resources.settings.payments.rpc_urls = ["http://127.0.0.1:9"]
    async with chain_resources.sessions.begin() as db:
        await db.execute(
            update(ChainCursor).values(indexed_until=func.now() - dt.timedelta(hours=7))
        )
    with capture_logs() as logs:
        await follow_chain({"resources": chain_resources})
    assert {"indexing_failed", "chain_index_behind"} <= {entry["event"] for entry in logs}
    assert (REGISTRY.get_sample_value("far_mesh_chain_index_age_seconds") or 0) > 7 * 3600 - 1
