"""Many reorganisations in a row, and whether the ledger says what the chain says in the end."""

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY
from sqlalchemy import func, select

from market import ledger
from market.chain.errors import ChainMoved
from market.escrow.event_reader import EVENTS, EscrowEventReader
from market.escrow.reader import EscrowReader
from market.escrow.tables import ChainEvent
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import LedgerTransaction, SpendingCap
from market.money import from_units, to_units
from market.resources import Resources
from market.settings.deployment import Deployment
from tests.support.branching import Branching, Transaction, Users, open_branching, scattered
from workers.chain_indexer.indexer import index_events

CONFIRMATIONS = 12
"""So few that most of the reorganisations are deeper."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened."""

    reorganisations: int
    deeper: int
    """Of them, those that were deeper than the confirmations, and seen."""
    events: Counter[str]
    """On the chain in the end, by name."""
    reversed: int
    """Transactions of the ledger that were reversed."""


async def survive(
    resources: Resources, url: str, *, reorganisations: int, deepest: int, seed: int
) -> Tally:
    """Let users act, leave blocks for other branches, follow now and then; compare at the end."""
    dice = random.Random(seed)
    chain, deployment = open_branching(url)
    use_branching(resources, url, deployment)
    users = Users(chain, deployment, dice)
    seen_before = _deep_reorganisations()
    depths = shuffled_depths(dice, reorganisations, deepest)
    async with EscrowEventReader.from_settings(resources.settings.payments) as reader:
        while chain.height <= deepest:
            chain.mine(*users.act(dice.randrange(3)))
        await index_events(resources, reader)
        for depth in depths:
            for _ in range(dice.randrange(1, 4)):
                chain.mine(*users.act(dice.randrange(3)))
            if dice.random() < 0.7:
                await index_events(resources, reader)
            left = chain.leave(depth)
            await _build_another(resources, reader, chain, users, dice, depth, left)
            await index_events(resources, reader)
        for _ in range(CONFIRMATIONS + 1):
            chain.mine()
        await index_events(resources, reader)
        names = await _compare(resources, users, reader)
    async with resources.sessions() as db:
        reversals = await _posted(db, "reverse")
    return Tally(
        reorganisations=len(depths),
        deeper=_deep_reorganisations() - seen_before,
        events=names,
        reversed=reversals,
    )


def use_branching(resources: Resources, url: str, deployment: Deployment) -> None:
    """Let these resources work on a chain with a block confirmed below `CONFIRMATIONS` others."""
    payments = resources.settings.payments
    payments.escrow_contract, payments.rpc_urls = deployment.escrow, [url]
    payments.first_block, payments.confirmations = deployment.block, CONFIRMATIONS
    payments.finalized_tag, payments.rpc_max_age = False, 0  # a development chain's mean nothing


def shuffled_depths(dice: random.Random, reorganisations: int, deepest: int) -> list[int]:
    """How many blocks each reorganisation leaves. Few are spread over all depths; of many, each
    depth comes as often as the others."""
    step = max(1, deepest // reorganisations)
    depths = [deepest - number * step % deepest for number in range(reorganisations)]
    dice.shuffle(depths)
    return depths


async def _build_another(
    resources: Resources,
    reader: EscrowEventReader,
    chain: Branching,
    users: Users,
    dice: random.Random,
    depth: int,
    left: list[Transaction],
) -> None:
    """A branch at least as long, with all, some, or none of the old transactions."""
    kept = left[: dice.choice([len(left), len(left) // 2, 0])]
    for old in scattered(dice, kept, depth + dice.randrange(2)):
        fresh = users.act(1) if dice.random() < 0.25 else []
        chain.mine(*old, *fresh)
        if dice.random() < 0.02:
            with suppress(ChainMoved):  # the branch is still shorter than what was read
                await index_events(resources, reader)


async def _compare(resources: Resources, users: Users, reader: EscrowEventReader) -> Counter[str]:
    """Ledger and chain, to the last base unit; returns the chain's events by name."""
    confirmed = await reader.chain.head() - CONFIRMATIONS
    first = resources.settings.payments.first_block
    on_chain = _logs(users, first, confirmed)
    async with resources.sessions() as db:
        rows = await db.execute(
            select(ChainEvent.name, ChainEvent.transaction_hash, ChainEvent.log_index).where(
                ChainEvent.status == "applied"
            )
        )
        applied = sorted(tuple(row) for row in rows)
        assert applied == sorted(on_chain), "every event counts once, and no other"
        names = Counter(name for name, _, _ in on_chain)
        posted = await _posted(db, "deposit")
        reversed_deposits = await _reversed(db, "deposit")
        assert posted - reversed_deposits == names["Deposited"]
        for account in users.accounts:
            await _compare_user(db, users, account.address)
    report = await check_integrity(resources.sessions, EscrowReader(reader.chain, reader.address))
    assert report.violations == 0, report.findings
    return names


async def _compare_user(db: Any, users: Users, address: str) -> None:
    wallet = address.lower()
    functions = users.escrow.functions
    available = await ledger.balance(db, ledger.available(wallet))
    waiting = await ledger.balance(db, ledger.withdrawing(wallet))
    assert to_units(available + waiting) == functions.depositOf(address).call()
    maximum, _ = functions.capOf(address).call()
    asked, ready_at = functions.capLoweringOf(address).call()
    if ready_at:
        maximum = min(maximum, asked)
    signed = await db.scalar(select(SpendingCap.signed).where(SpendingCap.wallet == wallet))
    assert (signed or 0) == from_units(maximum)


async def _posted(db: Any, kind: str) -> int:
    found: int = await db.scalar(
        select(func.count()).select_from(LedgerTransaction).where(LedgerTransaction.kind == kind)
    )
    return found


async def _reversed(db: Any, kind: str) -> int:
    found: int = await db.scalar(
        select(func.count())
        .select_from(LedgerTransaction)
        .where(
            LedgerTransaction.kind == "reverse", LedgerTransaction.reference.startswith(f"{kind}:")
        )
    )
    return found


def _deep_reorganisations() -> int:
    return int(REGISTRY.get_sample_value("far_mesh_chain_reorganisations_total") or 0)


def _logs(users: Users, first: int, last: int) -> list[tuple[str, str, int]]:
    """Asked of the chain directly, event by event."""
    return [
        (name, "0x" + bytes(log["transactionHash"]).hex(), log["logIndex"])
        for name in EVENTS
        for log in users.escrow.events[name].get_logs(from_block=first, to_block=last)
    ]
