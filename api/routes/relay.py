"""The relay's two endpoints: how nodes that are not beside Redis get their work (DESIGN §6)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, WebSocket
from starlette.requests import ClientDisconnect

from api.http import rate_limits
from api.http.authentication import CallingNode, authenticate, current_node
from api.http.errors import BodyTooLarge
from api.http.problem_details import render
from api.http.services import Services, WithServices
from api.relay import metrics
from api.relay.hub import RelayHub
from api.relay.long_poll import exchange
from api.relay.quotas.connection_slots import ConnectionSlot
from api.relay.websocket import NodeWebSocket
from api.server.paced_response import PacedResponse
from api.server.transfers import Transfer
from market.errors import Unavailable
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
    hub = services.relay
    async with AsyncExitStack() as stack:
        try:
            node = await _admit(websocket, services)
            wallet = await hub.wallets.find(node.node_id)
            slot = await stack.enter_async_context(
                hub.slots.acquire(node.node_id, wallet, "websocket")
            )
        except MeshError as error:
            await websocket.send_denial_response(render(error, websocket.url.path))
            return
        except OUTAGES as error:
            await websocket.send_denial_response(render(unavailable(error), websocket.url.path))
            return
        await websocket.accept()
        stack.enter_context(metrics.relay_connections.track_inprogress())
        await NodeWebSocket(hub, websocket, node, wallet, slot).serve()


@dataclass(frozen=True, slots=True)
class _Poll:
    """What a request of a node holds until its answer is sent, however slowly it is taken."""

    slot: ConnectionSlot
    incoming: Transfer
    outgoing: Transfer


async def _begin_poll(node: CallingNode, services: WithServices) -> AsyncIterator[_Poll]:
    hub = services.relay
    wallet = await hub.wallets.find(node.node_id)
    async with hub.slots.acquire(node.node_id, wallet, "poll") as slot:
        with (
            metrics.relay_polls.track_inprogress(),
            hub.transfers.open(wallet, grace=hub.settings.idle) as incoming,
            hub.transfers.open(wallet) as outgoing,
        ):
            yield _Poll(slot, incoming, outgoing)


@router.post(
    relay.EXCHANGE_PATH,
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPE: {}}, "description": "Frames, see mesh/relay/frames.py."}
    },
)
async def long_poll(
    request: Request,
    node: CallingNode,
    services: WithServices,
    poll: Annotated[_Poll, Depends(_begin_poll)],
) -> Response:
    """A node's connection by long polls, for nodes behind proxies that let no WebSocket through:
    frames as msgpack in the body, and in the answer."""
    hub = services.relay
    with poll.incoming:
        body = await _read(request, hub, node.node_id, poll)
        admit = partial(current_node, request)
        answer = await exchange(hub, node, body, admit)
    poll.outgoing.begin(len(answer))
    headers = {"Cache-Control": "no-store"}
    return PacedResponse(answer, poll.outgoing, media_type=MEDIA_TYPE, headers=headers)


async def _admit(websocket: WebSocket, services: Services) -> NodeIncarnation:
    claimed = await authenticate(websocket)
    claimed.require(Scope.SERVE)
    await rate_limits.RELAY_CONNECTIONS.count(services, claimed.subject)
    return await current_node(websocket)


async def _read(request: Request, hub: RelayHub, node_id: str, poll: _Poll) -> bytearray:
    """The body of an authenticated node: nobody else may send one as long as a frame. Empty if the
    node goes.

    Raises:
        BodyTooLarge: longer than a frame.
        Unavailable: longer than what a node has to say that is on no route.
        TransferTooSlow: it does not come.
        TransfersFull: other bodies have to be finished first.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and len(declared) < 16 and int(declared) > relay.MAX_FRAME_BYTES:
        raise _too_large()
    body = bytearray()
    pieces = aiter(request.stream())
    try:
        while True:
            piece = await poll.incoming.wait(anext(pieces))
            if len(body) + len(piece) > relay.MAX_FRAME_BYTES:
                raise _too_large()
            poll.incoming.add(len(piece))
            body += piece
            if len(body) > relay.MAX_MESSAGE_BYTES and not poll.slot.serves:
                if not await hub.delivered.look_up(node_id):
                    raise Unavailable(
                        "Only a node that is on a route may send more than "
                        f"{relay.MAX_MESSAGE_BYTES} bytes at once.",
                        retry_after=1,
                    )
                hub.slots.served(poll.slot)
    except StopAsyncIteration:
        return body
    except ClientDisconnect:
        return bytearray()


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"A body may have {relay.MAX_FRAME_BYTES} bytes at most.")
