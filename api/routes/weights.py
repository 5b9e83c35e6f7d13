"""Where a model's weights are, for those who serve it."""

from fastapi import APIRouter

from api.http import rate_limits
from api.http.authentication import Bearer, authenticate_current
from api.http.services import Services, WithServices
from api.schemas.base import ModelId
from api.schemas.models import ModelFile, ModelFiles, SignedRequestBody
from market.identity.errors import SignatureMismatch
from market.identity.nonces import consume_nonce
from market.identity.principal import Scope
from mesh import signed_texts

router = APIRouter(prefix="/api/models", tags=["nodes"])


@router.get("/{model_id:path}/files")
async def files(model_id: ModelId, bearer: Bearer, services: WithServices) -> ModelFiles:
    """Where the weights of a model are, for a machine or a node with its token."""
    caller = await authenticate_current(bearer, services, Scope.WEIGHTS)
    return await _files(model_id, caller.subject, services)


@router.post("/{model_id:path}/files", dependencies=[rate_limits.READS.by_address()])
async def files_for_wallet(
    model_id: ModelId, body: SignedRequestBody, services: WithServices
) -> ModelFiles:
    """Where the weights of a model are, for a machine that holds a wallet's key instead of a token:
    it signs a nonce."""
    message = signed_texts.weights_message(
        wallet_address=body.wallet_address, model_id=model_id, nonce=body.nonce
    )
    if not signed_texts.signed_by(message, body.signature, body.wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this request.")
    await consume_nonce(services.redis, body.nonce)
    return await _files(model_id, body.wallet_address, services)


async def _files(model_id: str, who: str, services: Services) -> ModelFiles:
    services.catalog.get(model_id)
    await rate_limits.WEIGHTS.count(services, who)
    listing = await services.published_weights.listing(model_id)
    return ModelFiles(
        model_id=model_id,
        expires_in=services.settings.weights.url_ttl,
        manifest_sha256=listing.manifest_sha256,
        files=[
            ModelFile(name=file.name, size=file.size, sha256=file.sha256, url=file.url)
            for file in listing.files
        ],
    )
