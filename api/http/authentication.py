"""Who is calling, as dependencies of routes."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection

from api.http import rate_limits
from api.http.services import Services
from market.identity import machines
from market.identity.api_key_text import PREFIX
from market.identity.errors import NotAuthenticated, TokenInvalid, TokenMissing
from market.identity.principal import Principal, Scope
from market.identity.tokens import verify_token
from market.nodes.node import NodeIncarnation
from market.nodes.registered_node import is_current

BEARER = Depends(
    HTTPBearer(
        auto_error=False,
        description="A token from /api/auth/login, or an API key from /api/keys.",
    )
)
"""Of a route that looks at the token by itself, so that the OpenAPI document has it."""

OPTIONAL: dict[str, Any] = {"security": [{}]}
"""A route's ``openapi_extra``: it has an answer without a token, too."""

LOG_IN = (
    "Send 'Authorization: Bearer <token>', with an API key from /api/keys or a token from "
    "/api/auth/login."
)


def token_of(connection: HTTPConnection) -> str | None:
    """The token that a request has, if any."""
    scheme, token = get_authorization_scheme_param(connection.headers.get("authorization"))
    return token if scheme.lower() == "bearer" and token else None


async def authenticate(connection: HTTPConnection) -> Principal:
    """Who holds the request's token: by its signature alone, or, of an API key, by its row, which
    is read once a request.

    Raises:
        NotAuthenticated: no token, or none of ours; a key that is revoked or has expired.
        RateLimited: keys that are none of ours were shown from this address too often.
    """
    known: Principal | None = getattr(connection.state, "caller", None)
    if known is None:
        known = connection.state.caller = await _identify(connection)
    return known


async def _identify(connection: HTTPConnection) -> Principal:
    services: Services = connection.app.state.services
    token = token_of(connection)
    if token is None:
        raise TokenMissing(LOG_IN)
    if not token.startswith(PREFIX):
        return verify_token(services.settings.auth, token)
    await rate_limits.UNKNOWN_KEYS.check_address(services, connection)
    try:
        return await services.key_lookups.find(token)
    except NotAuthenticated:
        await rate_limits.UNKNOWN_KEYS.count_address(services, connection)
        raise


async def authenticate_current(connection: HTTPConnection, *scopes: Scope) -> Principal:
    """Who holds the token, if that is still good: a machine's was not taken back, and a node has
    not registered again.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: the caller lacks one of the scopes.
    """
    services: Services = connection.app.state.services
    principal = await authenticate(connection)
    principal.require(*scopes)
    if principal.kind == "machine":
        async with services.sessions.begin() as db:
            wallet = await machines.mark_used(db, principal.machine_id)
        # What its row says counts, whatever the token does.
        principal = replace(principal, subject=wallet)
    elif principal.kind == "node":
        async with services.sessions() as db:
            if not await is_current(db, incarnation(principal)):
                raise TokenInvalid("The node's token is not good any more. Register again.")
    return principal


async def current_node(connection: HTTPConnection) -> NodeIncarnation:
    """The node that connects to the relay, whose requests nothing else counts, with a token that is
    still good.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: not a node's token.
        RateLimited: the node has connected too often.
    """
    claimed = await authenticate(connection)
    claimed.require(Scope.SERVE)
    # Before any row is read: a token that is not good any more costs no more than one that is.
    await rate_limits.REQUESTS_OF_WALLET.count(connection.app.state.services, claimed.subject)
    return incarnation(await authenticate_current(connection, Scope.SERVE))


def incarnation(principal: Principal) -> NodeIncarnation:
    """A node, and which of its registrations speaks."""
    return NodeIncarnation(principal.subject, principal.registration)


_Documented = Annotated[HTTPAuthorizationCredentials | None, BEARER]


def _caller_with(*scopes: Scope) -> Dependency:
    async def caller(request: Request, bearer: _Documented) -> Principal:
        principal = await authenticate(request)
        principal.require(*scopes)
        return principal

    dependency: Dependency = Depends(caller)
    return dependency


async def _node(request: Request, bearer: _Documented) -> NodeIncarnation:
    principal = await authenticate(request)
    principal.require(Scope.SERVE)
    return incarnation(principal)


AnyCaller = Annotated[Principal, _caller_with()]
GenerateCaller = Annotated[Principal, _caller_with(Scope.GENERATE)]
ReadJobsCaller = Annotated[Principal, _caller_with(Scope.READ_JOBS)]
CancelCaller = Annotated[Principal, _caller_with(Scope.GENERATE, Scope.READ_JOBS)]
"""Who ends a job is shown it."""
BillingCaller = Annotated[Principal, _caller_with(Scope.BILLING)]
KeysCaller = Annotated[Principal, _caller_with(Scope.KEYS)]
MachinesCaller = Annotated[Principal, _caller_with(Scope.MACHINES)]
CallingNode = Annotated[NodeIncarnation, Depends(_node)]
"""By its token's signature alone: whoever takes its word compares the registration."""
