"""The gateway in this process, and stand-ins for those around it: wallets, nodes, a worker."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import httpx
from eth_account import Account
from fastapi import FastAPI
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.http.services import Services
from market import ledger
from market.identity import api_keys
from market.identity.principal import Scope
from market.identity.tables import Machine
from market.identity.tokens import issue_machine_token, issue_node_token, issue_user_token
from market.jobs import live_session, tables
from market.ledger.tables import LedgerTransaction
from market.nodes import live_lookup, live_registry
from market.nodes.node import Node
from market.nodes.tables import RegisteredNode
from market.outbox import Outbox
from market.resources import Resources
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_counts import SkipCounter
from market.settings import Settings
from mesh import redis_keys, token_stream
from mesh.route_record import RouteRecord
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.factories import fund
from tests.support.postgres import copied_database
from workers.supervisor import completion, lease

USER = Account.from_key(b"\x01" * 32)
STRANGER = Account.from_key(b"\x02" * 32)
PROVIDER = Account.from_key(b"\x03" * 32)
WALLET = USER.address.lower()
OTHER_WALLET = STRANGER.address.lower()
PROVIDER_WALLET = PROVIDER.address.lower()

LAYERS = 6
"""Of the demo model."""

GENERATE = "/api/inference/distributed/generate"

SECRET = "xylophone quokka"
"""Words that occur nowhere else, to look for where no prompt may be."""

PATIENCE = 10.0
"""Seconds that a condition gets to become true."""

ASYNC = {"Prefer": "respond-async"}

T = TypeVar("T")

_numbers = itertools.count()


async def eventually(look: Callable[[], Awaitable[T]]) -> T:
    """What ``look`` gives as soon as that is true."""
    give_up = time.monotonic() + PATIENCE
    while not (found := await look()):
        assert time.monotonic() < give_up, "it never became true"
        await asyncio.sleep(0.01)
    return found


def request_body(**changes: object) -> dict[str, object]:
    """A generation that can be served."""
    return {"model_id": MODEL_ID, "prompt": SECRET, "max_tokens": 8} | changes


def node(number: int = 0, **changes: Any) -> Node:
    """One of three live nodes that serve two layers each; the first holds a trusted edge."""
    values: dict[str, Any] = {
        "node_id": f"node_{number}",
        "wallet_address": PROVIDER_WALLET,
        "model_id": MODEL_ID,
        "start_layer": 2 * number,
        "end_layer": 2 * number + 2,
        "edge": number == 0,
        "trusted": number == 0,
        "gpu_model": "RTX 4090",
        "vram_gb": 24,
        "location": "US-East",
        "public_addr": "192.0.2.1:31330",
        "is_healthy": True,
        "latency_ms": 5.0,
        "throughput_tokens_per_sec": 100.0,
        "current_requests": 0,
        "kv_positions": 0,
        "last_seen": 0.0,
    }
    return Node(**(values | changes))


def all_nodes() -> list[Node]:
    """Nodes for every layer of the demo model."""
    return [node(number) for number in range(LAYERS // 2)]


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error document, after checking that it is one, and the one expected."""
    document: dict[str, Any] = response.json()
    assert (response.status_code, document.get("code")) == (status, code), document
    assert response.headers["content-type"] == "application/problem+json"
    assert document["status"] == status
    assert document["type"] == f"https://farlabs.ai/problems/{code}"
    assert document["title"]
    assert document["detail"].endswith(".")
    return document


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event. Comments and pings are left out when a stream is read."""

    id: str | None
    data: dict[str, Any]


def parse_events(text: str) -> list[Event]:
    """All events of an answer's body."""
    events = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if line[:1] not in ("", ":")
        )
        if "data" in fields:
            events.append(Event(fields.get("id"), json.loads(fields["data"])))
    return events


def texts(events: list[Event]) -> str:
    """The text that the events carry."""
    return "".join(event.data["token"] for event in events if "token" in event.data)


@contextmanager
def shared_database(postgres: Postgres) -> Iterator[str]:
    """A database for a whole module, whose tests do not mind what the others wrote."""
    with copied_database(postgres, f"shared_{next(_numbers)}") as url:
        yield url


class Gateway:
    """The application with its services, and a client that is logged in as ``WALLET``."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client
        self.services: Services = app.state.services
        self.redis = self.services.redis
        self.sessions = self.services.sessions

    def login(self, wallet: str = WALLET) -> dict[str, str]:
        """Headers of somebody who is logged in."""
        token = issue_user_token(self.services.settings.auth, wallet)
        return {"Authorization": f"Bearer {token}"}

    def node_login(self, node_id: str, registration: int = 1) -> dict[str, str]:
        """Headers of a node, by this registration of it."""
        token = issue_node_token(self.services.settings.auth, node_id, registration)
        return {"Authorization": f"Bearer {token}"}

    async def machine(self, wallet: str) -> dict[str, str]:
        """Headers of a machine that the wallet has let in."""
        machine_id = f"machine_{secrets.token_hex(8)}"
        async with self.sessions.begin() as db:
            db.add(Machine(machine_id=machine_id, wallet_address=wallet, name="attic"))
        return self.machine_login(wallet, machine_id)

    def machine_login(self, wallet: str, machine_id: str) -> dict[str, str]:
        """Headers of a machine, whether the wallet has let it in or not."""
        token = issue_machine_token(self.services.settings.auth, wallet, machine_id)
        return {"Authorization": f"Bearer {token}"}

    async def key(self, wallet: str = WALLET, **terms: Any) -> dict[str, str]:
        """Headers of an API key of the wallet, which may generate and read jobs if nothing else is
        said."""
        values = {"name": "app", "scopes": [Scope.GENERATE, Scope.READ_JOBS]} | terms
        async with self.sessions.begin() as db:
            _, text = await api_keys.make(db, wallet, api_keys.KeyTerms(**values))
        return {"Authorization": f"Bearer {text}"}

    async def node(self, wallet: str) -> dict[str, str]:
        """Headers of a node that the wallet has registered."""
        node_id = f"node_{secrets.token_hex(8)}"
        span = {"model_id": MODEL_ID, "start_layer": 0, "end_layer": LAYERS}
        async with self.sessions.begin() as db:
            db.add(RegisteredNode(node_id=node_id, wallet_address=wallet, **span))
        return self.node_login(node_id)

    async def announce(self, *nodes: Node) -> None:
        for each in nodes:
            await live_registry.put(self.redis, each, ttl=120)

    async def deposit(self, amount: str = "1", wallet: str = WALLET) -> None:
        async with self.sessions.begin() as db:
            await fund(db, wallet=wallet, amount=amount)

    async def submit(self, **changes: object) -> "Job":
        """An accepted asynchronous job."""
        answer = await self.client.post(GENERATE, json=request_body(**changes), headers=ASYNC)
        assert answer.status_code == 202, answer.text
        return Job(self, answer.json()["request_id"])

    async def begin(
        self, headers: dict[str, str] | None = None, **changes: object
    ) -> tuple[asyncio.Task[httpx.Response], "Job"]:
        """A synchronous request that waits for its answer, and its job."""
        known = await self.request_ids()
        asking = asyncio.create_task(
            self.client.post(GENERATE, json=request_body(**changes), headers=headers)
        )
        return asking, await self.new_job(known)

    async def new_job(self, known: Collection[str] = ()) -> "Job":
        """The job that is written beside the known ones."""

        async def look() -> set[str]:
            return (await self.request_ids()).difference(known)

        return Job(self, (await eventually(look)).pop())

    async def request_ids(self) -> set[str]:
        async with self.sessions() as db:
            return set(await db.scalars(select(tables.Job.request_id)))

    async def books(self) -> tuple[dict[str, int], dict[tuple[str, str], Decimal]]:
        """How many rows there are of whatever a request may write, and all balances."""
        async with self.sessions() as db:
            counts = {}
            for table in (tables.Job, LedgerTransaction, Outbox):
                counts[table.__tablename__] = (
                    await db.scalar(select(func.count()).select_from(table)) or 0
                )
            rows = await db.execute(select(ledger.BALANCES))
            return counts, {(owner, kind): balance for owner, kind, balance in rows}

    async def balance(self, account: ledger.Account) -> Decimal:
        async with self.sessions() as db:
            return await ledger.balance(db, account)


class Job:
    """A generation, and the pen of the supervisor and the edge that would work on it."""

    def __init__(self, gateway: Gateway, request_id: str) -> None:
        self.id = request_id
        self.url = f"/api/inference/jobs/{request_id}"
        self._gateway = gateway
        self._redis = gateway.redis
        self._written = 0
        self._lease: lease.Lease | None = None
        made = gateway.services
        engine = made.sessions.kw["bind"]
        assert isinstance(engine, AsyncEngine)
        self._workers = Resources(
            settings=made.settings,
            engine=engine,
            sessions=made.sessions,
            long_sessions=made.long_sessions,
            reads=made.reads,
            own_reads=made.own_reads,
            redis=made.redis,
            queue=made.queue,
            catalog=made.catalog,
            vault=made.vault,
            skips=SkipCounter(made.redis),
        )

    async def row(self) -> tables.Job:
        """The job as Postgres has it now."""
        async with self._gateway.sessions() as db:
            row = await db.scalar(select(tables.Job).where(tables.Job.request_id == self.id))
        assert row is not None
        return row

    async def start(self) -> lease.Lease:
        """Take the lease and open the first epoch on live nodes, unless that was done."""
        if self._lease is not None:
            return self._lease
        taken = await lease.acquire(self._workers.sessions, self.id, 60)
        assert taken is not None
        self._lease = taken
        nodes = await live_lookup.live_nodes(self._redis, MODEL_ID)
        route = cheapest_route(nodes, RouteRequest(LAYERS))
        assert route is not None
        async with self._workers.sessions.begin() as db:
            for stage, each in enumerate(route):
                db.add(
                    tables.RouteHop(
                        session_id=taken.job.id,
                        epoch=1,
                        stage=stage,
                        node_id=each.node_id,
                        wallet_address=each.wallet_address,
                        start_layer=each.start_layer,
                        end_layer=each.end_layer,
                        first_token=0,
                    )
                )
        live = RouteRecord(1, 1000, [each.node_id for each in route])
        await live_session.begin_epoch(self._redis, self.id, 1, live, ttl=3600)
        return taken

    async def write(self, *tokens: str) -> None:
        """The edge appends tokens."""
        await self.start()
        keys = [redis_keys.live_record(self.id), redis_keys.tokens(self.id)]
        for text in tokens:
            written = await self._redis.eval(  # type: ignore[misc]
                token_stream.APPEND_TOKEN, 2, *keys, "1", str(self._written), "7", text
            )
            assert written == 1
            self._written += 1

    async def complete(self, reason: str = "length", *, summary: bool = True) -> None:
        """End it as its supervisor would; without ``summary``, as one that died before that."""
        await self._end(reason, None, summary=summary)

    async def fail(self, code: str = "stalled", *, summary: bool = True) -> None:
        """A failure of the mesh."""
        await self._end("failed", code, summary=summary)

    async def _end(self, reason: str, code: str | None, *, summary: bool) -> None:
        self._outcome = await completion.end(
            self._workers,
            await self.start(),
            edge_units=self._workers.catalog.get(MODEL_ID).edge_units,
            reason=reason,
            code=code,
            progress=completion.Progress(
                tokens=await live_session.seal(self._redis, self.id, 1, ttl=3600),
                first_token_at=await live_session.first_token_at(self._redis, self.id),
            ),
        )
        if summary:
            await self.summarize()

    async def summarize(self) -> None:
        """The last entry of the stream."""
        await live_session.finish(self._redis, self.id, self._outcome, ttl=3600)

    async def forget(self) -> None:
        """All as it is an hour later."""
        await self.lose()
        async with self._workers.sessions.begin() as db:
            mine = select(tables.Job.id).where(tables.Job.request_id == self.id)
            await db.execute(
                update(tables.StoredTokens)
                .where(tables.StoredTokens.session_id.in_(mine))
                .values(readable_until=func.now())
            )

    async def lose(self) -> None:
        """Redis as it is after a crash."""
        await self._redis.delete(
            redis_keys.live_record(self.id), redis_keys.tokens(self.id), redis_keys.events(self.id)
        )

    async def restore(self, *tokens: str) -> None:
        """Redis has started from a snapshot, in which these are the tokens."""
        for number, text in enumerate(tokens, start=1):
            await self._redis.xadd(
                redis_keys.tokens(self.id), {"i": 7, "t": text}, id=f"{number}-0"
            )

    async def poll(self) -> dict[str, Any]:
        answer = await self._gateway.client.get(self.url)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def events(self, after: str | None = None) -> list[Event]:
        """What a reader of the ended job gets, from the first event or after one."""
        headers = {} if after is None else {"Last-Event-ID": after}
        answer = await self._gateway.client.get(self.url + "/events", headers=headers)
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return parse_events(answer.text)


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """The gateway over these settings, with its lifespan entered."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE) as client,
    ):
        gateway = Gateway(app, client)
        client.headers.update(gateway.login())
        yield gateway
