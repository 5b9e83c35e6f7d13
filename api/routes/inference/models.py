"""Models on offer (§7.1)."""

from fastapi import APIRouter, Response

from api.http import rate_limits
from api.http.public_reads import WithReads
from api.http.services import WithServices
from api.schemas.models import ModelOnOffer, Models
from market.routing.coverage import coverage_of

router = APIRouter(prefix="/api/inference", tags=["discovery"])


@router.get("/models", response_model=Models, dependencies=[rate_limits.READS.by_address()])
async def models(services: WithServices, reads: WithReads) -> Response:
    """Models on offer, with their prices now."""

    async def read() -> Models:
        return Models(
            models=[
                ModelOnOffer.of(await coverage_of(services.redis, model))
                for model in services.catalog
            ]
        )

    return await reads.answer(("models",), read)
