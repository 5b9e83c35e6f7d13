"""The relay's two endpoints: how nodes that are not beside Redis get their work (DESIGN §6)."""

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import ClientDisconnect

from api.auth import CallingRegistration, registration_of
from api.limits import limit
from api.problems import OUTAGES, render, unavailable
from api.relay.carriers import WebSocketCarrier, exchange
from api.services import Services, WithServices
from mesh import metrics, relay
from mesh.errors import BodyTooLarge, MeshError
from mesh.registry import Registration

router = APIRouter(tags=["relay"])

MEDIA_TYPE = "application/msgpack"


@router.websocket(relay.PATH)
async def connect(websocket: WebSocket) -> None:
    """A node's connection. Refused before it is accepted if the token is not a node's."""
    services: Services = websocket.app.state.services
    try:
        node = await _admit(websocket, services)
    except MeshError as error:
        await websocket.send_denial_response(render(error))
        return
    except OUTAGES as error:
        await websocket.send_denial_response(render(unavailable(error)))
        return
    await websocket.accept()
    with metrics.relay_connections.track_inprogress():
        await WebSocketCarrier(services.relay, websocket, node).serve()


@router.post(
    relay.EXCHANGE_PATH,
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Frames, see mesh/relay.py."}},
)
async def long_poll(
    request: Request, node: CallingRegistration, services: WithServices
) -> Response:
    """The same by long polls, for nodes behind proxies that let no WebSocket through: frames
    as msgpack in the body, and in the answer."""
    body = await _read(request)
    with metrics.relay_polls.track_inprogress():
        answer = await exchange(services.relay, node, body)
    return Response(answer, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


async def _admit(websocket: WebSocket, services: Services) -> Registration:
    scheme, token = get_authorization_scheme_param(websocket.headers.get("authorization"))
    bearer = None
    if scheme.lower() == "bearer" and token:
        bearer = HTTPAuthorizationCredentials(scheme=scheme, credentials=token)
    node = registration_of(bearer, services)
    rule = services.settings.limits.relay_connections_per_node
    await limit(services, rule, "relay", node.node_id)
    return node


async def _read(request: Request) -> bytes:
    """The body of a node that has shown its token: so long ones are read only from nodes.

    Raises:
        BodyTooLarge: longer than a frame.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > relay.MAX_FRAME_BYTES:
                raise BodyTooLarge(f"A body may have {relay.MAX_FRAME_BYTES} bytes at most.")
    except ClientDisconnect:
        return b""
    return bytes(body)
