"""Receipts: what a generation cost, who got it, and the proof that the chain says so, too."""

from collections.abc import Sequence

from api.services import Services
from mesh import jobs
from mesh.db import InferenceSession, NodeContribution, Settlement
from mesh.errors import JobNotFound, ReceiptNotReady
from mesh.money import ZERO, plain
from mesh.schemas import NodeContribution as Part
from mesh.schemas import Receipt, ReceiptBatch, ReceiptStatus, UsageLine, shown
from mesh.usage import request_id_of


async def receipt(services: Services, wallet: str, request_id: str) -> Receipt:
    """The receipt of a job, for its user; for a provider, his part of it.

    Raises:
        JobNotFound: no such job, or the wallet had no part in it.
        ReceiptNotReady: it has not ended.
        UsageUnproven: what is stored does not give the batch's root.
    """
    job, parts, batch = await _find(services, request_id)
    served = [part for part in parts if part.wallet_address == wallet]
    is_user = job is not None and job.user_wallet == wallet
    if job is None or not (is_user or served):
        raise JobNotFound("You have no job of this id.")
    if job.completed_at is None:
        raise ReceiptNotReady("This job has not ended: there is nothing to pay yet.", retry_after=5)
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
        served=[_part(part) for part in (parts if is_user else served)],
        batch=batch and await _batch(services, job, batch, None if is_user else wallet),
    )


async def _find(
    services: Services, request_id: str
) -> tuple[InferenceSession | None, Sequence[NodeContribution], Settlement | None]:
    if not request_id.isprintable():  # Postgres has no NUL in a text
        return None, (), None
    async with services.sessions() as db:
        job = await jobs.find(db, request_id)
        if job is None:
            return None, (), None
        parts = await jobs.contributions(db, job)
        batch = None
        if job.settlement_id is not None:
            batch = await db.get(Settlement, job.settlement_id)
    return job, parts, batch


def _status(job: InferenceSession, batch: Settlement | None) -> ReceiptStatus:
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
    services: Services, job: InferenceSession, batch: Settlement, provider: str | None
) -> ReceiptBatch:
    """``provider``: whose lines are shown; all where none is given."""
    lines = []
    if batch.usage_root is not None:
        usage = await services.usage_trees.of(services.sessions, batch)
        lines = [
            UsageLine(
                request_id="0x" + line.request_id.hex(),
                user=line.user,
                provider=line.provider,
                tokens=line.tokens,
                amount=str(line.amount),
                proof=["0x" + node.hex() for node in proof],
            )
            for line, proof in usage.proven(request_id_of(job.id))
            if provider in (None, line.provider)
        ]
    return ReceiptBatch(
        batch_id=batch.id,
        contract=services.settings.payments.escrow_contract,
        transaction_hash=batch.transaction_hash,
        block_number=batch.block_number,
        usage_root=batch.usage_root,
        lines=lines,
    )
