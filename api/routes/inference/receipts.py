"""What a job cost, who served it, and the proof."""

from fastapi import APIRouter

from api.http import rate_limits
from api.http.authentication import BillingCaller
from api.http.services import WithServices
from api.schemas.receipts import Receipt
from market.receipts.receipt import receipt_of

router = APIRouter(prefix="/api/inference", tags=["inference"])


@router.get("/jobs/{request_id}/receipt")
async def receipt(request_id: str, caller: BillingCaller, services: WithServices) -> Receipt:
    """What an ended job cost, who served which layers and tokens, and how the cost was split.

    Once it is in a batch, also each line of the batch that is about it, with a Merkle proof: the
    contract's `verifyUsage(batch_id, line, proof)` says whether the chain agrees. The job's user
    sees all of it; a provider that took part sees his own.
    """
    await rate_limits.RECEIPTS.count(services, caller.wallet)
    return Receipt.of(await receipt_of(services, caller.wallet, request_id))
