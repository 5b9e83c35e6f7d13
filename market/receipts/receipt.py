"""Receipts: what a generation cost, who got it, and the proof that the chain says so, too."""

from collections.abc import Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.services import Services
from api.schemas.base import shown
from api.schemas.jobs import ContributionView as Part
from api.schemas.receipts import Receipt, ReceiptBatch, UsageLine
from market.jobs import queries
from market.jobs.errors import JobNotFound
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, plain
from market.receipts.errors import ReceiptNotReady
from market.receipts.status import ReceiptStatus
from market.settlement.errors import UsageUnproven
from market.settlement.tables import Settlement
from market.settlement.usage_lines import tree_of, usage_lines
from market.settlement.usage_tree import Usage

log = structlog.get_logger()


async def receipt(services: Services, wallet: str, request_id: str) -> Receipt:
    """The receipt of a job, for its user; for a provider, his part of it.

    Raises:
        JobNotFound: no such job, or the wallet had no part in it.
        ReceiptNotReady: it has not ended.
        UsageUnproven: what is stored does not give the batch's root.
    """
    async with services.sessions() as db:
        # One snapshot: settlement may put the job into another batch meanwhile.
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        job, parts = await _find(db, wallet, request_id)
        if job.completed_at is None:
            raise ReceiptNotReady(
                "This job has not ended: there is nothing to pay yet.", retry_after=5
            )
        batch, lines = await _batch(db, job, parts)
    is_user = job.user_wallet == wallet
    cost = job.total_cost_far or ZERO
    return Receipt(
        request_id=job.request_id,
        status=_status(job, batch),
        model_id=job.model_id,
        user_wallet=job.user_wallet,
        completed_at=job.completed_at,
        prompt_tokens=job.prompt_tokens,
        tokens_generated=job.token_count,
        cost_far=shown(cost) if is_user else None,
        cost_far_exact=plain(cost) if is_user else None,
        platform_fee_far_exact=plain(job.fee_far or ZERO) if is_user else None,
        served=[_part(part) for part in parts if is_user or part.wallet_address == wallet],
        batch=batch
        and ReceiptBatch(
            batch_id=batch.id,
            contract=services.settings.payments.escrow_contract,
            transaction_hash=batch.transaction_hash,
            block_number=batch.block_number,
            usage_root=batch.usage_root,
            lines=[line for line in lines if is_user or line.provider == wallet],
        ),
    )


async def _find(
    db: AsyncSession, wallet: str, request_id: str
) -> tuple[Job, Sequence[NodeContribution]]:
    """The job and all who served it, if the wallet is one of those that it concerns."""
    printable = request_id.isprintable()  # Postgres has no NUL in a text
    job = await queries.find(db, request_id) if printable else None
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


def _part(part: NodeContribution) -> Part:
    return Part(
        node_id=part.node_id,
        layers=part.layers,
        wallet_address=part.wallet_address,
        tokens_contributed=part.tokens_contributed,
        payment_far=shown(part.payment_far),
        payment_far_exact=plain(part.payment_far),
    )


async def _batch(
    db: AsyncSession, job: Job, parts: Sequence[NodeContribution]
) -> tuple[Settlement | None, list[UsageLine]]:
    """The job's batch, and the job's lines in it with their proofs."""
    if job.settlement_id is None:
        return None, []
    batch = await db.get_one(Settlement, job.settlement_id)
    if batch.usage_root is None or batch.fee_recipient is None:
        return batch, []  # of the first contract, which kept no root
    try:
        tree = await tree_of(db, batch)
        lines = usage_lines([job], {job.id: parts}, batch.fee_recipient)
        return batch, [_line(line, tree.proof(line)) for line in lines]
    except (UsageUnproven, LookupError):
        log.error("usage_unproven", batch=batch.id, request_id=job.request_id)
        raise UsageUnproven(
            "The lines of this batch cannot be proven. It has been logged."
        ) from None


def _line(line: Usage, proof: Sequence[bytes]) -> UsageLine:
    return UsageLine(
        request_id="0x" + line.request_id.hex(),
        user=line.user,
        provider=line.provider,
        tokens=line.tokens,
        amount=str(line.amount),
        proof=["0x" + node.hex() for node in proof],
    )
