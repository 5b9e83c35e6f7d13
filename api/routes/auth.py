"""Login with a wallet: an EIP-4361 message, signed once, for a bearer token."""

from fastapi import APIRouter, Request

from api.http import rate_limits
from api.http.services import WithServices
from api.schemas.auth import LoginBody, Nonce, UserToken
from market.identity.nonces import issue_nonce
from market.identity.tokens import issue_user_token
from market.identity.wallet_login import check_login

router = APIRouter(prefix="/api/auth", tags=["auth"])


@router.get("/nonce")
async def nonce(request: Request, services: WithServices) -> Nonce:
    """A nonce to sign, for a login or a node's registration. Can be used once."""
    auth = services.settings.auth
    await rate_limits.NONCES.count_address(services, request)
    issued = await issue_nonce(services.redis, ttl=auth.nonce_ttl)
    return Nonce(nonce=issued, domain=auth.domain, expires_in=auth.nonce_ttl)


@router.post("/login")
async def login(body: LoginBody, request: Request, services: WithServices) -> UserToken:
    """Exchange a signed EIP-4361 message for a token.

    The message must name our domain, a nonce from `/api/auth/nonce` and an expiration time.
    """
    auth = services.settings.auth
    await rate_limits.LOGINS.count_address(services, request)
    await check_login(
        services.redis,
        domain=auth.domain,
        message=body.message,
        signature=body.signature,
        wallet_address=body.wallet_address,
    )
    return UserToken(
        token=issue_user_token(auth, body.wallet_address),
        wallet_address=body.wallet_address,
        expires_in=auth.token_ttl,
    )
