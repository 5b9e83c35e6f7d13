"""GET /v1/models."""

from fastapi import APIRouter, Response

from api.http import rate_limits
from api.http.public_reads import WithReads
from api.http.services import Services, WithServices
from api.schemas.openai.models import ModelList, ModelObject
from market.catalog.models import Model
from market.routing.coverage import coverage_of

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[rate_limits.READS.by_address()])


@router.get("/models", response_model=ModelList)
async def models(services: WithServices, reads: WithReads) -> Response:
    """Models on offer, in OpenAI's form, with OpenRouter's prices and limits."""

    async def read() -> ModelList:
        return ModelList(data=[await _object(services, model) for model in services.catalog])

    return await reads.answer(("openai models",), read)


@router.get("/models/{model_id:path}", response_model=ModelObject)
async def model(model_id: str, services: WithServices, reads: WithReads) -> Response:
    """One model on offer."""
    found = services.catalog.get(model_id)

    async def read() -> ModelObject:
        return await _object(services, found)

    return await reads.answer(("openai model", found.id), read)


async def _object(services: Services, model: Model) -> ModelObject:
    return ModelObject.of(await coverage_of(services.redis, model))
