"""Requests with a token, and those with a body, are counted by address before the body is read; a
body that needs a token is read of nobody without one."""

from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import rate_limits
from api.http.authentication import LOG_IN, bearer_of
from api.http.problem_details import render
from api.middleware.body_sizes import BodySizes
from market.identity.errors import NotAuthenticated, TokenMissing
from market.identity.tokens import verify_token
from market.outages import OUTAGES, unavailable
from market.settings.auth import AuthSettings
from mesh.errors import MeshError


class RequestLimit:
    """Refuses what an address asks too often, however malformed it is: parsing costs as much."""

    def __init__(
        self,
        app: ASGIApp,
        auth: AuthSettings,
        sizes: BodySizes,
        uncounted: Collection[str] = (),
        with_token: Collection[str] = (),
    ) -> None:
        """
        Args:
            app: What gets the request.
            auth: By which a token is verified.
            sizes: Which requests may have a body.
            uncounted: Paths that count for themselves.
            with_token: Paths whose bodies nobody may send without a token.
        """
        self._app = app
        self._auth = auth
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
            NotAuthenticated: only who has a token may send a body here.
            RateLimited: the address has asked too often.
        """
        request = Request(scope)
        has_body = self._sizes.of(scope) > 0
        try:
            bearer = bearer_of(request)
            if bearer is None:
                raise TokenMissing(LOG_IN)
            verify_token(self._auth, bearer.credentials)
            limit = rate_limits.REQUESTS_OF_ADDRESS
        except NotAuthenticated:
            if not has_body:
                return  # as cheap as an answer can be
            if scope["path"] in self._with_token:
                raise
            limit = rate_limits.BODIES
        await limit.count_address(request.app.state.services, request)
