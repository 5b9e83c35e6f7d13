"""Where a model's weights are, for those who serve it."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.http.authentication import Bearer, consume_nonce, node_or_machine
from api.http.rate_limits import limit
from api.http.services import Services, WithServices
from api.schemas.base import ModelId, RequestBody, WalletAddress
from market.identity.errors import SignatureMismatch
from mesh import signed_texts

router = APIRouter(prefix="/api/models", tags=["nodes"])


class FileOfModel(BaseModel):
    name: str
    size: int
    sha256: str
    url: str
    """Gives ranges. It may expire: ask again then."""


class FilesOfModel(BaseModel):
    model_id: str
    expires_in: int
    """Seconds for which the URLs are good."""
    manifest_sha256: str
    """Of the file `far-mesh-manifest.json`, which has the SHA-256 of every tensor."""
    files: list[FileOfModel]


class SignedByWallet(RequestBody):
    wallet_address: WalletAddress
    nonce: str = Field(max_length=64)
    signature: str = Field(max_length=200)


@router.get("/{model_id:path}/files")
async def files(model_id: ModelId, bearer: Bearer, services: WithServices) -> FilesOfModel:
    """Where the weights of a model are, for a machine or a node with its token."""
    return await _files(model_id, await node_or_machine(bearer, services), services)


@router.post("/{model_id:path}/files")
async def files_for_wallet(
    model_id: ModelId, body: SignedByWallet, services: WithServices
) -> FilesOfModel:
    """The same for a machine that holds a wallet's key instead of a token: it signs a nonce."""
    message = signed_texts.weights_message(
        wallet_address=body.wallet_address, model_id=model_id, nonce=body.nonce
    )
    if not signed_texts.signed_by(message, body.signature, body.wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this request.")
    await consume_nonce(services.redis, body.nonce)
    return await _files(model_id, body.wallet_address, services)


async def _files(model_id: str, who: str, services: Services) -> FilesOfModel:
    services.catalog.get(model_id)
    await limit(services, services.settings.limits.weights_per_wallet, "weights", who)
    listing = await services.published.listing(model_id)
    return FilesOfModel(
        model_id=model_id,
        expires_in=services.settings.weights.url_ttl,
        manifest_sha256=listing.manifest_sha256,
        files=[
            FileOfModel(name=file.name, size=file.size, sha256=file.sha256, url=file.url)
            for file in listing.files
        ],
    )
