"""Replicas of the gateway in threads, and a node that speaks to them frame by frame."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jwt
import redis
import uvicorn
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from websockets.sync.client import ClientConnection, connect

from api.app import create_app
from api.server.http_protocol import LimitedHttpProtocol
from api.server.websocket_protocol import LimitedWebSocketProtocol
from market import db
from market.identity.tables import Machine
from market.nodes.tables import RegisteredNode
from market.settings import Settings
from mesh import redis_keys, relay, wire
from mesh.relay import (
    Assembler,
    Frame,
    Hello,
    InboxDelivery,
    KeepAlive,
    KeepAliveAck,
    OutgoingMessage,
    Push,
    PushAck,
    Welcome,
)
from mesh.route_record import RouteRecord
from mesh.wire import Close, Message, Step, Steps
from tests.conftest import MODEL_ID
from tests.support.gateway.api import WALLET
from tests.support.network.tls import Certificate

PATIENCE = 20.0
WIDTH = 2
CAPACITY = 100
ROUTE = ["edge", "middle", "last"]


def wait_until(condition: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < give_up, "it never became true"
        time.sleep(0.01)
    return found


class Replica:
    """One gateway, whose server takes WebSockets and messages of so many bytes, and speaks TLS if
    it has a certificate."""

    def __init__(
        self,
        settings: Settings,
        *,
        max_message_bytes: int = relay.MAX_MESSAGE_BYTES,
        certificate: Certificate | None = None,
        websockets: bool = True,
    ) -> None:
        self.settings = settings
        self._scheme = "http" if certificate is None else "https"
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.app = create_app(settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
                http=LimitedHttpProtocol,
                ws=LimitedWebSocketProtocol if websockets else "none",
                ws_max_size=max_message_bytes,
                ws_per_message_deflate=False,
                ssl_certfile=None if certificate is None else certificate.certificate,
                ssl_keyfile=None if certificate is None else certificate.key,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],))
        self._thread.start()
        wait_until(lambda: self._server.started)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def transfer_bytes(self) -> int:
        """Bytes of bodies and frames that are half here, and of answers that are half taken."""
        used: int = self.app.state.services.relay.transfers.used
        return used

    def token(self, subject: str, kind: str = "node", *, wallet: str = WALLET) -> str:
        """Of a node that is registered, or of somebody else."""
        if kind == "node":
            row = {"wallet_address": wallet, "model_id": MODEL_ID, "start_layer": 0, "end_layer": 1}
            new = insert(RegisteredNode).values(node_id=subject, **row).on_conflict_do_nothing()
            asyncio.run(self._write(new))
        claims = {"sub": subject, "kind": kind, "exp": int(time.time()) + 3600}
        return jwt.encode(claims, self.settings.auth.jwt_secret.get_secret_value())

    def register_again(self, node_id: str) -> None:
        """As another process of the same node does."""
        later = RegisteredNode.registration + 1
        mine = RegisteredNode.node_id == node_id
        asyncio.run(self._write(update(RegisteredNode).where(mine).values(registration=later)))

    def let_in(self, machine_id: str, node_id: str) -> None:
        """The machine of a node that is registered: let in by the node's wallet."""
        machine = insert(Machine).values(machine_id=machine_id, wallet_address=WALLET, name="attic")
        asyncio.run(self._write(machine.on_conflict_do_nothing()))
        mine = RegisteredNode.node_id == node_id
        asyncio.run(self._write(update(RegisteredNode).where(mine).values(machine_id=machine_id)))

    async def _write(self, statement: Any) -> None:
        engine, sessions = db.connect(self.settings.database_url)
        async with sessions.begin() as session:
            await session.execute(statement)
        await engine.dispose()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()


@contextlib.contextmanager
def replica(settings: Settings, **options: Any) -> Iterator[Replica]:
    started = Replica(settings, **options)
    try:
        yield started
    finally:
        started.stop()


class Node:
    """A WebSocket of a node, without a runner behind it."""

    def __init__(
        self,
        at: Replica,
        node_id: str,
        *,
        session: str = "session",
        after: str = "",
        wallet: str = WALLET,
    ) -> None:
        self.node_id = node_id
        self.socket: ClientConnection = connect(
            websocket_url(at),
            additional_headers=bearer(at.token(node_id, wallet=wallet)),
            compression=None,
            ping_interval=None,
            proxy=None,
        )
        self._assembler = Assembler()
        self._pending: list[Frame] = []
        self._number = 0
        self.send(Hello(relay.VERSION, session, after))
        self.welcome = self.receive(Welcome)
        self.after = self.welcome.after

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, frame: Frame) -> None:
        for message in relay.chunks(relay.encode(frame)):
            self.socket.send(message)

    def receive(self, kind: type[Any]) -> Any:
        """The next frame of that kind; others are kept for later."""
        for index, frame in enumerate(self._pending):
            if isinstance(frame, kind):
                return self._pending.pop(index)
        while True:
            data = self.socket.recv(timeout=PATIENCE)
            assert isinstance(data, bytes)
            found = self._assembler.add(data)
            if isinstance(found, kind):
                return found
            if found is not None:
                self._pending.append(found)

    def push(self, *messages: tuple[str, Message], number: int | None = None) -> PushAck:
        self._number = self._number + 1 if number is None else number
        self.send(Push(self._number, [outgoing(to, message) for to, message in messages]))
        ack: PushAck = self.receive(PushAck)
        assert ack.number == self._number
        return ack

    def keep_alive(self, free_kv: int = 0) -> None:
        self.send(KeepAlive(7, free_kv, self.after))
        assert self.receive(KeepAliveAck) == KeepAliveAck(7)

    def read(self) -> list[Message]:
        inbox: InboxDelivery = self.receive(InboxDelivery)
        self.after = inbox.after
        return [wire.decode({wire.HEADER: e.header, wire.TENSOR: e.tensor}) for e in inbox.entries]


def outgoing(to: str, message: Message) -> OutgoingMessage:
    fields = wire.encode(message)
    return OutgoingMessage(to, bytes(fields[wire.HEADER]), bytes(fields.get(wire.TENSOR, b"")))


def begin(
    client: redis.Redis,
    epoch: int = 1,
    route: Sequence[str] = ROUTE,
    name: str = "gen",
    capacity: int = CAPACITY,
) -> None:
    """The live record, as a worker writes it."""
    packed = RouteRecord(WIDTH, capacity, list(route)).pack()
    client.hset(redis_keys.live_record(name), mapping={"epoch": epoch, "route": packed})


def steps(*, name: str = "gen", epoch: int = 1, width: int = WIDTH, **changes: Any) -> Steps:
    """One step of one row."""
    values = {"position": 0, "rows": 1, "wanted": 1, "replay": False} | changes
    step = Step(name, epoch, **values)
    return Steps([step], "float32", width, bytes(4 * width * step.rows))


def on_route(client: redis.Redis, *node_ids: str) -> None:
    """Nodes that a supervisor has sent something."""
    for node_id in node_ids:
        put(client, node_id, Close("earlier", 1))


def put(client: redis.Redis, node_id: str, *messages: Message) -> None:
    for message in messages:
        client.xadd(redis_keys.inbox(node_id), wire.encode(message))  # type: ignore[arg-type]


def inbox(client: redis.Redis, node_id: str) -> list[Message]:
    return _messages(client, redis_keys.inbox(node_id))


def events(client: redis.Redis, name: str = "gen") -> list[Message]:
    return _messages(client, redis_keys.events(name))


def senders(client: redis.Redis, name: str = "gen") -> list[str]:
    """Who says each event of a generation, as its supervisor reads it."""
    entries = client.xrange(redis_keys.events(name))
    return [fields[wire.SENDER].decode() for _, fields in entries]


def _messages(client: redis.Redis, stream: str) -> list[Message]:
    return [wire.decode(fields) for _, fields in client.xrange(stream)]


def websocket_url(at: Replica) -> str:
    return f"ws://127.0.0.1:{at.port}{relay.WEBSOCKET_PATH}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def dial(at: Replica, node_id: str, *, wallet: str = WALLET) -> ClientConnection:
    headers = bearer(at.token(node_id, wallet=wallet))
    return connect(websocket_url(at), additional_headers=headers)
