"""The node's side of the DHT, with its process: announcing, dying, and finding the platform."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from mesh.dht import records
from mesh.dht.peer import Peer
from mesh.node_api import Heartbeat
from node_runner.dht.announcer import Announcer, NodeCredential
from node_runner.dht.peer_client import DhtEndpoint, DhtUnavailable, PeerClient, find_urls
from node_runner.dht.platform_lookup import PlatformNotFound, dht_endpoint, platform_url
from stack.servers import free_port
from tests.conftest import MODEL_ID
from tests.support.gateway.api import LAYERS
from tests.support.gateway.dht import (
    NODE_KEY,
    OPERATOR,
    STRANGER,
    announcements_at,
    full_peer,
    soon,
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Peer, DhtEndpoint]]:
    async with full_peer(tmp_path) as (peer, addresses):
        yield peer, DhtEndpoint(tuple(addresses), OPERATOR.public.hex())


def announcer(endpoint: DhtEndpoint) -> Announcer:
    issued = records.issue_credential(
        OPERATOR,
        node_id="node_0",
        registration=1,
        model_id=MODEL_ID,
        layers=LAYERS,
        public_key=NODE_KEY.public,
        expires=time.time() + 3600,
    )
    credential = NodeCredential("node_0", 1, MODEL_ID, NODE_KEY, issued.hex())
    return Announcer(endpoint, credential, (0, 2), interval=0.2)


@pytest.mark.slow
async def test_a_node_announces_what_it_measured_and_its_process_may_be_killed(
    served: tuple[Peer, DhtEndpoint],
) -> None:
    peer, endpoint = served
    node = announcer(endpoint)
    node.heartbeat = Heartbeat(
        latency_ms=12.0, throughput_tokens_per_sec=34.0, current_requests=5, kv_positions=678
    )
    node.start()
    try:
        told = (await soon(lambda: announcements_at(peer)))["node_0"]
        assert (told.start_layer, told.end_layer, told.latency_ms) == (0, 2, 12.0)
        assert (told.throughput_tokens_per_sec, told.kv_positions) == (34.0, 678)
        first = node.peer_pid
        assert first is not None
        children = psutil.Process(first).children()
        assert [child.name() for child in children] == ["p2pd"]
        os.kill(first, signal.SIGKILL)

        async def announced_again() -> bool:
            newer = (await announcements_at(peer))["node_0"].expires > time.time() + 119
            return newer and node.peer_pid not in (None, first)

        await soon(announced_again)
        second = node.peer_pid
        assert second is not None
        # The daemon alone dies: the process opens another.
        psutil.Process(second).children()[0].kill()
        killed_at = time.time()

        async def announced_anew() -> bool:
            return (await announcements_at(peer))["node_0"].expires > killed_at + 120.5

        await soon(announced_anew)
        everybody = [*children, *psutil.Process(second).children(), psutil.Process(second)]
    finally:
        await asyncio.to_thread(node.close)
    _, alive = await asyncio.to_thread(psutil.wait_procs, everybody, 20)
    assert alive == []


@pytest.mark.slow
async def test_a_dht_that_nobody_reaches_blocks_nothing() -> None:
    endpoint = DhtEndpoint(
        (f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{PEER_ID}",), OPERATOR.public.hex()
    )
    with pytest.raises(DhtUnavailable):
        await asyncio.to_thread(find_urls, endpoint)
    node = announcer(endpoint)
    began = time.monotonic()
    node.start()
    node.close()
    assert time.monotonic() - began < 5


PEER_ID = "QmQX571R7LBGYFJVz1qyZu7ANrpTtSXxN9gUDLaMzCTLYi"


@pytest.mark.slow
def test_a_process_that_does_not_answer_in_time_is_ended() -> None:
    peer = PeerClient(DhtEndpoint((), OPERATOR.public.hex()))
    with pytest.raises(DhtUnavailable, match="no answer"):
        peer.ask({"do": "find"}, timeout=0.01)
    assert peer.pid is None


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def platform() -> Iterator[str]:
    """Something that answers as a platform does when it is asked whether it lives."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
async def test_the_platform_is_found_in_the_dht_if_its_url_does_not_answer(
    served: tuple[Peer, DhtEndpoint],
) -> None:
    peer, endpoint = served
    with platform() as url:
        expires = time.time() + 120
        endpoints = records.sign_endpoints(
            OPERATOR, records.PlatformEndpoints(["http://127.0.0.1:1", url], expires)
        )
        await peer.store(records.ENDPOINTS_KEY, records.ENDPOINTS_SUBKEY, endpoints, expires)
        nobody = f"http://127.0.0.1:{free_port()}"
        for given in (None, nobody):
            assert await asyncio.to_thread(platform_url, given, endpoint) == url
        # Another operator's key is another word: this one's does not count.
        other = DhtEndpoint(endpoint.peers, STRANGER.public.hex())
        assert await asyncio.to_thread(platform_url, nobody, other) == nobody
        with pytest.raises(PlatformNotFound, match="The DHT"):
            await asyncio.to_thread(platform_url, None, other)
        assert platform_url(url, endpoint) == url


def test_peers_are_worth_nothing_without_the_operators_key() -> None:
    assert dht_endpoint((), None) is None
    with pytest.raises(PlatformNotFound, match="--operator-key"):
        dht_endpoint(("/ip4/192.0.2.1/tcp/31337/p2p/Qm",), None)
    with pytest.raises(PlatformNotFound, match="64 hexadecimal"):
        dht_endpoint(("/ip4/192.0.2.1/tcp/31337/p2p/Qm",), "0x12")
    with pytest.raises(PlatformNotFound, match="--dht-peers"):
        platform_url(None, None)
    assert platform_url("http://127.0.0.1:1", None) == "http://127.0.0.1:1"
