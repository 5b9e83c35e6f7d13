"""A wallet's API keys: made, listed, changed and revoked by it; and what is left of the one that
asks."""

from fastapi import APIRouter, Response, status

from api.http import rate_limits
from api.http.authentication import AnyCaller, KeysCaller
from api.http.services import WithServices
from api.schemas.api_keys import ChangeKeyBody, Keys, KeyView, NewKey, NewKeyBody, OwnKeyAnswer
from api.schemas.base import PathId
from market.errors import Forbidden
from market.identity import api_keys
from market.ledger import key_spending

router = APIRouter(prefix="/api/keys", tags=["keys"])
own_router = APIRouter(prefix="/v1", tags=["keys"])
"""Under the path at which OpenRouter's clients look for it."""


@router.post("", status_code=status.HTTP_201_CREATED)
async def make(
    body: NewKeyBody, caller: KeysCaller, services: WithServices, response: Response
) -> NewKey:
    """Make an API key. The answer has the key, which is shown nowhere again."""
    await rate_limits.NEW_KEYS.count(services, caller.wallet)
    terms = body.terms()
    for model_id in terms.models or ():
        services.catalog.get(model_id)
    async with services.sessions.begin() as db:
        key, text = await api_keys.make(db, caller.wallet, terms)
    response.headers["Cache-Control"] = "no-store"
    return NewKey.made(key, text)


@router.get("")
async def listed(caller: KeysCaller, services: WithServices) -> Keys:
    """Your wallet's API keys that are not revoked, the newest first, with their last use and what
    each has spent."""
    async with services.own_reads() as db:
        keys = await api_keys.keys_of(db, caller.wallet)
        spent = await key_spending.spent_by(db, [key.key_id for key in keys])
    return Keys(keys=[KeyView.of(key, spent[key.key_id]) for key in keys])


@router.patch("/{key_id}")
async def change(
    key_id: PathId, body: ChangeKeyBody, caller: KeysCaller, services: WithServices
) -> KeyView:
    """Rename an API key, or change its limits: the next request counts against the new ones."""
    async with services.sessions.begin() as db:
        key = await api_keys.change(db, caller.wallet, key_id, body.values())
        spent = await key_spending.spent_by(db, [key_id])
    return KeyView.of(key, spent[key_id])


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke(key_id: PathId, caller: KeysCaller, services: WithServices) -> None:
    """Take an API key back, for good. Its next request is refused; its jobs that run go on."""
    async with services.sessions.begin() as db:
        await api_keys.revoke(db, caller.wallet, key_id)


@own_router.get("/key")
async def own(caller: AnyCaller, services: WithServices) -> OwnKeyAnswer:
    """What is left of the API key that asks: of its limits this day, this month and in all."""
    if caller.key_id is None:
        raise Forbidden("Only an API key may ask this. A wallet lists its keys at /api/keys.")
    async with services.own_reads() as db:
        key = await api_keys.find(db, caller.wallet, caller.key_id)
        spent = await key_spending.spent_by(db, [key.key_id])
    rule = rate_limits.generations_of_key(services, caller)
    return OwnKeyAnswer.of(key, spent[key.key_id], (rule.amount, rule.get_expiry()))
