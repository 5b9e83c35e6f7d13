"""The escrow's events in the ledger: when they count, what they mean, killed anywhere."""

import asyncio
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from market.escrow.batch_lines import pack_lines
from market.escrow.event_reader import EscrowEventReader
from market.money import from_units
from market.resources import Resources
from market.settlement.tables import Settlement
from stack.dev_chain_client import development_account
from tests.support.chain.escrow import (
    FAR,
    Actions,
    assert_ledger_agrees,
    confirm_after,
    killed_at,
    left,
)
from workers.chain_indexer.indexer import index_events


async def test_a_deposit_and_a_cap_count_once(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=3)
    assert await index_events(chain_resources, reader) == 2
    assert await index_events(chain_resources, reader) == 0
    assert await left(chain_resources, user) == (3, 0, 3)
    await assert_ledger_agrees(chain_resources, reader)


async def test_money_counts_only_when_it_is_deep_enough(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    reader = confirm_after(chain_resources, reader, 3)
    user = actions.user()
    for blocks, seen in ((0, (0, 0, 0)), (1, (0, 0, 0)), (1, (1, 0, 0)), (1, (1, 0, 1))):
        actions.pass_by(blocks)
        await index_events(chain_resources, reader)
        assert await left(chain_resources, user) == seen


async def test_a_range_of_which_nothing_is_final_ends_the_pass(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As while the chain's finality stands still: the same range would be read for ever."""
    monkeypatch.setattr("market.escrow.event_reader.MAX_BLOCK_RANGE", 3)
    user = actions.user()
    await index_events(chain_resources, reader)
    reader = confirm_after(chain_resources, reader, 100)
    actions.pass_by(8)
    async with asyncio.timeout(30):
        assert await index_events(chain_resources, reader) == 0
    assert await left(chain_resources, user) == (1, 0, 1)


async def test_a_requested_withdrawal_is_set_aside_until_it_is_paid(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    actions.call(user, "requestWithdrawal", 2 * FAR)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 2, 5)
    actions.call(user, "cancelWithdrawal")
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (5, 0, 5)
    actions.call(user, "requestWithdrawal", 4 * FAR)
    actions.pass_by(2)
    actions.call(user, "withdraw", user.address)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (1, 0, 5)
    await assert_ledger_agrees(chain_resources, reader)


async def test_a_lower_cap_binds_as_soon_as_it_is_seen(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """A higher one does not; and a lowering that vanishes binds no more."""
    user = actions.user(far=5)
    await index_events(chain_resources, reader)
    reader = confirm_after(chain_resources, reader, 10)
    mark = actions.ask("evm_snapshot")
    actions.call(user, "requestCapLowering", 2 * FAR)
    await index_events(chain_resources, reader)
    assert (await left(chain_resources, user))[2] == 2
    actions.ask("evm_revert", mark)
    actions.pass_by(3)
    await index_events(chain_resources, reader)
    assert (await left(chain_resources, user))[2] == 5


async def test_a_lowering_that_is_cancelled_binds_until_that_counts(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    actions.call(user, "requestCapLowering", 2 * FAR)
    await index_events(chain_resources, reader)
    reader = confirm_after(chain_resources, reader, 1)
    actions.call(user, "cancelCapLowering")
    await index_events(chain_resources, reader)
    assert (await left(chain_resources, user))[2] == 2
    actions.pass_by(1)
    await index_events(chain_resources, reader)
    assert (await left(chain_resources, user))[2] == 5


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "replaced"])
async def test_a_batch_that_we_did_not_close_raises_the_alarm(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader, known: bool
) -> None:
    """Or one whose generations are in another by now."""
    user = actions.user()
    thief = development_account(0)
    batch, root = b"\x07" * 32, b"\x08" * 32
    debits, credits = (pack_lines({who.address.lower(): FAR}) for who in (user, thief))
    if known:
        lines = {user.address.lower(): str(FAR)}
        async with chain_resources.sessions.begin() as db:
            db.add(
                Settlement(
                    id="0x" + batch.hex(),
                    status="replaced",
                    debits=lines,
                    credits=lines,
                    fee_units=Decimal(0),
                )
            )
    actions.call(thief, "settle", batch, debits, credits, 0, root)
    with capture_logs() as logs:
        await index_events(chain_resources, reader)
    [alarm] = [entry for entry in logs if entry["event"] == "unknown_batch_settled"]
    assert alarm["batch"] == "0x" + batch.hex()
    assert alarm["log_level"] == "error"


@pytest.mark.slow
async def test_a_killed_indexer_counts_each_event_once(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """At each commit and each question to the chain, with a reorg on the way."""
    user = actions.user()
    await index_events(chain_resources, reader)
    boundary = 0
    while True:
        mark = actions.ask("evm_snapshot")
        actions.call(user, "requestWithdrawal", FAR // 2)
        await index_events(chain_resources, reader)
        actions.ask("evm_revert", mark)
        actions.pass_by(1)
        actions.call(user, "requestWithdrawal", boundary + 1)
        killed = await killed_at(
            boundary, chain_resources, lambda: index_events(chain_resources, reader)
        )
        await index_events(chain_resources, reader)
        asked = from_units(boundary + 1)
        assert await left(chain_resources, user) == (1 - asked, asked, 1)
        if not killed:
            break
        boundary += 1
    assert boundary > 8
    await assert_ledger_agrees(chain_resources, reader)
