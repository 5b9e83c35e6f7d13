"""Where a model's weights are, for those who serve it; and the files of those that lie here."""

from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from api.http import rate_limits
from api.http.authentication import BEARER, authenticate_current
from api.http.reading.reader_slots import HeldForAnswer
from api.http.services import Services, WithServices
from api.schemas.base import ModelId
from api.schemas.models import ModelFile, ModelFiles, SignedRequestBody
from api.server.paced_response import PacedResponse
from market.catalog.published_weights import WeightFile
from market.identity.principal import Scope
from market.identity.tokens import MAX_TOKEN, issue_weights_token, verify_weights_token
from market.identity.wallet_signature import WalletSignature, check_signature
from mesh import signed_texts

router = APIRouter(prefix="/api/models", tags=["nodes"])

MEDIA_TYPE = "application/octet-stream"

MAX_FILE_NAME = 255


@router.get("/{model_id:path}/files", dependencies=[BEARER])
async def files(model_id: ModelId, request: Request, services: WithServices) -> ModelFiles:
    """Where the weights of a model are, for a machine or a node with its token."""
    caller = await authenticate_current(request, Scope.WEIGHTS)
    wallet = caller.wallet or await services.relay.wallets.find(caller.subject)
    return await _files(model_id, caller.subject, wallet, services)


@router.post("/{model_id:path}/files", dependencies=[rate_limits.READS.by_address()])
async def files_for_wallet(
    model_id: ModelId, body: SignedRequestBody, services: WithServices
) -> ModelFiles:
    """Where the weights of a model are, for a machine that holds a wallet's key instead of a token:
    it signs a nonce."""
    auth = services.settings.auth
    message = signed_texts.weights_message(
        platform=auth.domain,
        wallet_address=body.wallet_address,
        model_id=model_id,
        nonce=body.nonce,
        expires_at=body.expires_at,
    )
    proof = WalletSignature(body.nonce, body.expires_at, body.signature)
    await check_signature(
        services.redis, auth, proof, message=message, wallet_address=body.wallet_address
    )
    return await _files(model_id, body.wallet_address, body.wallet_address, services)


@router.get(
    "/{model_id:path}/files/{name}",
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPE: {}}, "description": "The file."},
        206: {"content": {MEDIA_TYPE: {}}, "description": "The range of it that was asked for."},
        416: {"description": "The file has no such range."},
    },
    dependencies=[rate_limits.REQUESTS_OF_ADDRESS.by_address()],
)
async def file(
    model_id: ModelId,
    name: str,
    token: Annotated[str, Query(max_length=MAX_TOKEN)],
    services: WithServices,
    held: HeldForAnswer,
) -> Response:
    """A file of a model whose weights lie here, by the URL that the list has: whole, or the range
    that the request names."""
    wallet = verify_weights_token(services.settings.auth, token, model_id)
    await rate_limits.WEIGHT_FILES.count(services, wallet)
    held.enter_context(services.downloads.hold(wallet))
    found = await services.published_weights.file(model_id, name)
    if isinstance(found, bytes):
        transfer = held.enter_context(services.relay.transfers.open(wallet))
        transfer.begin(len(found))
        return PacedResponse(found, transfer, media_type=MEDIA_TYPE)
    return FileResponse(found.path, media_type=MEDIA_TYPE, headers={"ETag": f'"{found.sha256}"'})


async def _files(model_id: str, who: str, wallet: str, services: Services) -> ModelFiles:
    """``wallet``: whose downloads count together, whichever of its nodes fetches."""
    services.catalog.get(model_id)
    await rate_limits.WEIGHTS.count(services, who)
    listing = await services.published_weights.listing(model_id)
    ttl = services.settings.weights.url_ttl
    query = urlencode({"token": issue_weights_token(services.settings.auth, wallet, model_id, ttl)})

    def url_of(file: WeightFile) -> str:
        # Relative to the list's own URL: a gateway does not know what it is called from outside.
        return file.url if file.url is not None else f"files/{quote(file.name)}?{query}"

    return ModelFiles(
        model_id=model_id,
        expires_in=ttl,
        manifest_sha256=listing.manifest_sha256,
        files=[
            ModelFile(name=file.name, size=file.size, sha256=file.sha256, url=url_of(file))
            for file in listing.files
        ],
    )
