"""The relay's two endpoints: how nodes that are not beside Redis get their work (DESIGN §6)."""

import asyncio
from contextlib import ExitStack
from functools import partial

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import ClientDisconnect

from api.http import rate_limits
from api.http.authentication import Bearer, CallingNode, authenticate, current_node
from api.http.errors import BodyTooLarge
from api.http.problem_details import render
from api.http.services import Services, WithServices
from api.relay import metrics
from api.relay.long_poll import exchange
from api.relay.websocket import NodeWebSocket
from market.identity.principal import Scope
from market.nodes.node import NodeIncarnation
from market.outages import OUTAGES, unavailable
from mesh import relay
from mesh.errors import MeshError

router = APIRouter(tags=["relay"])

MEDIA_TYPE = "application/msgpack"


@router.websocket(relay.WEBSOCKET_PATH)
async def connect(websocket: WebSocket) -> None:
    """A node's connection. Refused before it is accepted if the token is not a node's, or not good
    any more."""
    services: Services = websocket.app.state.services
    with ExitStack() as stack:
        try:
            node = await _admit(websocket, services)
            stack.enter_context(services.relay.slots.acquire(node.node_id, "websocket"))
        except MeshError as error:
            await websocket.send_denial_response(render(error))
            return
        except OUTAGES as error:
            await websocket.send_denial_response(render(unavailable(error)))
            return
        await websocket.accept()
        stack.enter_context(metrics.relay_connections.track_inprogress())
        await NodeWebSocket(services.relay, websocket, node).serve()


@router.post(
    relay.EXCHANGE_PATH,
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPE: {}}, "description": "Frames, see mesh/relay/frames.py."}
    },
)
async def long_poll(
    request: Request, bearer: Bearer, node: CallingNode, services: WithServices
) -> Response:
    """A node's connection by long polls, for nodes behind proxies that let no WebSocket through:
    frames as msgpack in the body, and in the answer."""
    hub = services.relay
    with hub.slots.acquire(node.node_id, "poll"), metrics.relay_polls.track_inprogress():
        body = await _read(request, hub.settings.idle)
        admit = partial(current_node, bearer, services)
        answer = await exchange(hub, node, body, admit)
    return Response(answer, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


async def _admit(websocket: WebSocket, services: Services) -> NodeIncarnation:
    scheme, token = get_authorization_scheme_param(websocket.headers.get("authorization"))
    bearer = None
    if scheme.lower() == "bearer" and token:
        bearer = HTTPAuthorizationCredentials(scheme=scheme, credentials=token)
    claimed = authenticate(bearer, services)
    claimed.require(Scope.SERVE)
    await rate_limits.RELAY_CONNECTIONS.count(services, claimed.subject)
    return await current_node(bearer, services)


async def _read(request: Request, idle: float) -> bytearray:
    """The body of an authenticated node: nobody else may send one as long as a frame. Empty if the
    node goes, or sends nothing for ``idle`` seconds.

    Raises:
        BodyTooLarge: longer than a frame.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(idle) as silence:
            async for chunk in request.stream():
                silence.reschedule(asyncio.get_running_loop().time() + idle)
                body += chunk
                if len(body) > relay.MAX_FRAME_BYTES:
                    raise BodyTooLarge(f"A body may have {relay.MAX_FRAME_BYTES} bytes at most.")
    except (ClientDisconnect, TimeoutError):
        return bytearray()
    return body
