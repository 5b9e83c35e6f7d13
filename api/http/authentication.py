"""Who is calling, as dependencies of routes."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection

from api.http import rate_limits
from api.http.services import Services, WithServices
from market.identity import machines
from market.identity.errors import TokenInvalid, TokenMissing
from market.identity.principal import Principal, Scope
from market.identity.tokens import verify_token
from market.nodes.node import NodeIncarnation
from market.nodes.registered_node import is_current

Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, bearerFormat="JWT", description="From /api/auth/login.")),
]

OPTIONAL: dict[str, Any] = {"security": [{}]}
"""A route's ``openapi_extra``: it has an answer without a token, too."""

LOG_IN = "Log in at /api/auth/login and send 'Authorization: Bearer <token>'."


def bearer_of(connection: HTTPConnection) -> HTTPAuthorizationCredentials | None:
    """The token that a request has, where no route reads it."""
    scheme, token = get_authorization_scheme_param(connection.headers.get("authorization"))
    if scheme.lower() != "bearer" or not token:
        return None
    return HTTPAuthorizationCredentials(scheme=scheme, credentials=token)


def authenticate(bearer: HTTPAuthorizationCredentials | None, services: Services) -> Principal:
    """Who holds the token, by its signature alone.

    Raises:
        NotAuthenticated: no token, or none of ours.
    """
    if bearer is None:
        raise TokenMissing(LOG_IN)
    return verify_token(services.settings.auth, bearer.credentials)


async def authenticate_current(
    bearer: HTTPAuthorizationCredentials | None, services: Services, scope: Scope | None = None
) -> Principal:
    """Who holds the token, if that is still good: a machine's was not taken back, and a node has
    not registered again.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: the caller lacks the scope.
        RateLimited: the caller has asked too often.
    """
    principal = authenticate(bearer, services)
    if scope is not None:
        principal.require(scope)
    # Before any row is read: a token that is not good any more costs no more than one that is.
    await rate_limits.REQUESTS_OF_WALLET.count(services, principal.subject)
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


async def current_node(
    bearer: HTTPAuthorizationCredentials | None, services: Services
) -> NodeIncarnation:
    """The calling node, whose token is still good.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: not a node's token.
    """
    return incarnation(await authenticate_current(bearer, services, Scope.SERVE))


def incarnation(principal: Principal) -> NodeIncarnation:
    """A node, and which of its registrations speaks."""
    return NodeIncarnation(principal.subject, principal.registration)


def _caller_with(scope: Scope) -> Dependency:
    async def caller(bearer: Bearer, services: WithServices) -> Principal:
        principal = authenticate(bearer, services)
        principal.require(scope)
        await rate_limits.REQUESTS_OF_WALLET.count(services, principal.subject)
        return principal

    dependency: Dependency = Depends(caller)
    return dependency


async def _node(bearer: Bearer, services: WithServices) -> NodeIncarnation:
    principal = authenticate(bearer, services)
    principal.require(Scope.SERVE)
    return incarnation(principal)


InferenceCaller = Annotated[Principal, _caller_with(Scope.INFERENCE)]
BillingCaller = Annotated[Principal, _caller_with(Scope.BILLING)]
MachinesCaller = Annotated[Principal, _caller_with(Scope.MACHINES)]
CallingNode = Annotated[NodeIncarnation, Depends(_node)]
"""By its token's signature alone: whoever takes its word compares the registration."""
