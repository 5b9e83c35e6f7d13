"""Many reorgs in a row under a settler, and whether everybody was paid once in the end."""

import random
from dataclasses import dataclass
from decimal import Decimal

from eth_account.signers.local import LocalAccount
from sqlalchemy import func, select

from market import ledger
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job, NodeContribution
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import LedgerTransaction
from market.money import ZERO, to_units
from market.resources import Resources
from market.settings.deployment import Deployment
from market.settlement.tables import Settlement
from stack.dev_chain_client import DevChainClient, development_account
from tests.support.chain.branching import Branching, open_branching
from tests.support.chain.manual_chain import mining
from tests.support.chain.reorgs import CONFIRMATIONS, shuffled_depths, use_branching
from tests.support.chain.settled_money import PROVIDERS, SIGNER, served
from workers.chain_indexer.indexer import index_events
from workers.settlement import settle_due

ENOUGH = 1000
"""Runs in which settlement comes to its end for certain."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What happened."""

    reorgs: int
    generations: int
    batches: int
    undone: int
    """Batches that were posted, and undone by a reorg."""


async def settle_on(
    resources: Resources, url: str, *, reorgs: int, deepest: int, seed: int
) -> Settled:
    """Serve, settle, mine, and leave blocks for other branches; compare at the end."""
    dice = random.Random(seed)
    chain, deployment = open_branching(url)
    use_branching(resources, url, deployment)
    payments = resources.settings.payments
    payments.release_delay, payments.stuck_after, payments.confirmation_wait = 0, 3600, 0.2
    payments.settle_amount = Decimal(0)
    user = _rich(DevChainClient(url), deployment)
    # The deposit is below every fork.
    for _ in range(deepest + CONFIRMATIONS):
        chain.mine()
    depths = shuffled_depths(dice, reorgs, deepest)
    generations = 0
    async with (
        EscrowEventReader.from_settings(payments) as reader,
        EscrowReader.from_settings(payments) as escrow,
    ):
        await index_events(resources, reader)
        for depth in depths:
            for _ in range(dice.randrange(1, 3)):
                await served(resources, user, dice.randrange(1, 9))
                generations += 1
                await settle_due(resources, escrow, SIGNER)
                for _ in range(dice.choice([1, CONFIRMATIONS + 1])):
                    chain.mine()
                await settle_due(resources, escrow, SIGNER)
            await index_events(resources, reader)
            chain.leave(depth)
            for _ in range(depth + dice.randrange(CONFIRMATIONS)):
                chain.mine()
            await settle_due(resources, escrow, SIGNER)
        await _finish(resources, escrow, chain)
        for _ in range(CONFIRMATIONS + 1):
            chain.mine()
        await index_events(resources, reader)
        await _compare(resources, escrow)
    async with resources.sessions() as db:
        batches = await db.scalar(select(func.count()).select_from(Settlement))
        reversals = await db.scalar(
            select(func.count())
            .select_from(LedgerTransaction)
            .where(LedgerTransaction.kind == "reverse")
        )
    return Settled(len(depths), generations, batches or 0, reversals or 0)


def _rich(actor: DevChainClient, deployment: Deployment) -> LocalAccount:
    """Somebody who has deposited and signed for more than he will ever spend."""
    user = development_account(4)
    with mining(actor):
        actor.deposit(deployment, user, 10**21)
    return user


async def _finish(resources: Resources, escrow: EscrowReader, chain: Branching) -> None:
    """No more reorgs: mine and settle until nothing is due."""
    for _ in range(ENOUGH):
        await settle_due(resources, escrow, SIGNER)
        chain.mine()
        async with resources.sessions() as db:
            unpaid = await db.scalar(
                select(func.count())
                .select_from(Job)
                .outerjoin(Settlement)
                .where(func.coalesce(Settlement.status, "") != "confirmed")
            )
        if not unpaid:
            return
    raise AssertionError("Settlement never comes to its end.")


async def _compare(resources: Resources, escrow: EscrowReader) -> None:
    """Each provider was paid once, and ledger and chain agree to the last base unit."""
    async with resources.sessions() as db:
        for provider in PROVIDERS:
            due = await db.scalar(
                select(func.sum(NodeContribution.payment_far)).where(
                    NodeContribution.wallet_address == provider
                )
            )
            assert await escrow.earned_of(provider) == to_units(due or ZERO) > 0
            assert await ledger.balance(db, ledger.owed(provider)) == 0
        unmarked = select(func.count()).where(NodeContribution.paid_at.is_(None))
        assert await db.scalar(unmarked) == 0
    report = await check_integrity(resources.sessions, escrow)
    assert report.violations == 0, report.findings
