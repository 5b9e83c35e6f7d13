"""Receipts: what a generation cost, who got it, and the proof that the chain says so, too."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from market.catalog.prices import Prices
from market.jobs import queries
from market.jobs.errors import JobNotFound
from market.jobs.request_id import is_request_id
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO
from market.receipts.errors import ReceiptNotReady
from market.resources import Resources
from market.settlement.errors import UsageUnproven
from market.settlement.tables import Settlement
from market.settlement.usage_lines import tree_of, usage_lines
from market.settlement.usage_tree import UsageLine

log = structlog.get_logger()


class ReceiptStatus(StrEnum):
    FREE = "free"
    """Nothing was charged."""
    CAPTURED = "captured"
    """The user has paid; the providers wait for the release delay."""
    IN_BATCH = "in_batch"
    SETTLED = "settled"
    """The contract has credited the providers, finally."""


@dataclass(frozen=True, slots=True)
class ProvenLine:
    """One line of a batch, and its Merkle proof: the siblings' hashes, 32 bytes each, from the
    line's own up."""

    line: UsageLine
    proof: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ReceiptBatch:
    """The on-chain transaction that paid a generation, with many others.

    ``contract``: the escrow's address. ``transaction_hash``: none until it is mined.
    ``usage_root``: what the contract keeps of the batch's lines.
    """

    batch_id: str
    contract: str | None
    transaction_hash: str | None
    block_number: int | None
    usage_root: str | None
    lines: list[ProvenLine]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a generation cost and who got it. ``cost``, ``prompt_cost`` (its part for the prompt)
    and ``fee``: FAR, for its user only."""

    request_id: str
    status: ReceiptStatus
    model_id: str
    user_wallet: str
    completed_at: dt.datetime
    prompt_tokens: int
    cached_prompt_tokens: int
    tokens_generated: int
    prices: Prices
    cost: Decimal | None
    prompt_cost: Decimal | None
    fee: Decimal | None
    served: list[NodeContribution]
    batch: ReceiptBatch | None


async def receipt_of(resources: Resources, wallet: str, request_id: str) -> Receipt:
    """The receipt of a job, for its user; for a provider, his part of it.

    Raises:
        JobNotFound: no such job, or the wallet had no part in it.
        ReceiptNotReady: it has not ended.
        UsageUnproven: what is stored does not give the batch's root.
    """
    async with resources.own_reads() as db:
        # One snapshot: settlement may put the job into another batch meanwhile.
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        job, parts = await _find(db, wallet, request_id)
        if job.completed_at is None:
            raise ReceiptNotReady(
                "This job has not ended: there is nothing to pay yet.", retry_after=5
            )
        batch, lines = await _batch(db, job, parts)
    is_user = job.user_wallet == wallet
    return Receipt(
        request_id=job.request_id,
        status=_status(job, batch),
        model_id=job.model_id,
        user_wallet=job.user_wallet,
        completed_at=job.completed_at,
        prompt_tokens=job.prompt_tokens,
        cached_prompt_tokens=job.cached_prompt_tokens,
        tokens_generated=job.token_count,
        prices=queries.prices_of(job),
        cost=job.total_cost_far or ZERO if is_user else None,
        prompt_cost=job.prompt_cost_far if is_user else None,
        fee=job.fee_far or ZERO if is_user else None,
        served=[part for part in parts if is_user or part.wallet_address == wallet],
        batch=None
        if batch is None
        else ReceiptBatch(
            batch_id=batch.id,
            contract=resources.settings.payments.escrow_contract,
            transaction_hash=batch.transaction_hash,
            block_number=batch.block_number,
            usage_root=batch.usage_root,
            lines=[each for each in lines if is_user or each.line.provider == wallet],
        ),
    )


async def _find(
    db: AsyncSession, wallet: str, request_id: str
) -> tuple[Job, Sequence[NodeContribution]]:
    """The job and all who served it, if the wallet is one of those that it concerns."""
    job = await queries.find(db, request_id) if is_request_id(request_id) else None
    parts = [] if job is None else await queries.contributions(db, job)
    if job is None or wallet not in {job.user_wallet, *(part.wallet_address for part in parts)}:
        raise JobNotFound("You have no job of this id.")
    return job, parts


def _status(job: Job, batch: Settlement | None) -> ReceiptStatus:
    if not job.total_cost_far:
        return ReceiptStatus.FREE
    if batch is None:
        return ReceiptStatus.CAPTURED
    return ReceiptStatus.SETTLED if batch.status == "confirmed" else ReceiptStatus.IN_BATCH


async def _batch(
    db: AsyncSession, job: Job, parts: Sequence[NodeContribution]
) -> tuple[Settlement | None, list[ProvenLine]]:
    """The job's batch, and the job's lines in it with their proofs."""
    if job.settlement_id is None:
        return None, []
    batch = await db.get_one(Settlement, job.settlement_id)
    if batch.usage_root is None or batch.fee_recipient is None:
        return batch, []  # of the first contract, which kept no root
    try:
        tree = await tree_of(db, batch)
        lines = usage_lines([job], {job.id: parts}, batch.fee_recipient)
        return batch, [ProvenLine(line, tree.proof(line)) for line in lines]
    except (UsageUnproven, LookupError):
        log.error("usage_unproven", batch=batch.id, request_id=job.request_id)
        raise UsageUnproven(
            "The lines of this batch cannot be proven. It has been logged."
        ) from None
