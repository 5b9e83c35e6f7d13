"""Who calls is found out, and counted, before the body is read: by wallet or node, or by address if
there is neither. A body that needs a token is read of nobody without one."""

from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import rate_limits
from api.http.authentication import authenticate, token_of
from api.http.problem_details import render
from api.http.services import Services
from api.middleware.body_sizes import BodySizes
from market.identity.api_key_text import PREFIX
from market.identity.errors import NotAuthenticated
from market.identity.principal import Principal
from market.outages import OUTAGES, unavailable
from mesh.errors import MeshError


class RequestLimit:
    """Refuses what is asked too often, however malformed it is: parsing costs as much."""

    def __init__(
        self,
        app: ASGIApp,
        sizes: BodySizes,
        uncounted: Collection[str] = (),
        with_token: Collection[str] = (),
    ) -> None:
        """
        Args:
            app: What gets the request.
            sizes: Which requests may have a body.
            uncounted: Paths that count for themselves.
            with_token: Paths whose bodies nobody may send without a token.
        """
        self._app = app
        self._sizes = sizes
        self._uncounted = uncounted
        self._with_token = with_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._uncounted:
            try:
                await self._admit(scope)
            except MeshError as error:
                await render(error, scope["path"])(scope, receive, send)
                return
            except OUTAGES as error:
                await render(unavailable(error), scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        """
        Raises:
            NotAuthenticated: an API key that is not good, which is refused wherever it is shown; or
                only who has a token may send a body here.
            RateLimited: the caller, or the address, has asked too often.
        """
        request = Request(scope)
        services: Services = request.app.state.services
        try:
            caller = await authenticate(request)
        except NotAuthenticated:
            await self._count_stranger(services, request)
            if scope["path"] in self._with_token or (token_of(request) or "").startswith(PREFIX):
                raise
        else:
            await _count_caller(services, request, caller)

    async def _count_stranger(self, services: Services, request: Request) -> None:
        if request.scope["path"] in self._with_token:
            await rate_limits.GENERATIONS_OF_ADDRESS.count_address(services, request)
        elif self._sizes.of(request.scope) > 0:  # what has no body is as cheap as an answer can be
            await rate_limits.BODIES.count_address(services, request)


async def _count_caller(services: Services, request: Request, caller: Principal) -> None:
    """A wallet counts with all of its keys and machines; and, since wallets cost nothing, all of an
    address count together, by a limit that only a flood meets."""
    await rate_limits.REQUESTS_OF_WALLET.count(services, caller.subject)
    await rate_limits.REQUESTS_OF_ADDRESS.count_address(services, request)
