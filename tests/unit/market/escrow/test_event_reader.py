"""Reading the escrow's events from endpoints that refuse, lag, or change branches."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast

import pytest
from web3 import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from market.chain import bounded_http
from market.chain.client import ChainClient
from market.chain.errors import AnswerTooLarge, ChainError, ChainMoved, ChainReorg
from market.chain.failover_rpc import FailoverProvider
from market.escrow.event_reader import Block, EscrowEventReader, EventRange

ESCROW = "0x" + "11" * 20


class Node(AsyncBaseProvider):
    """An endpoint with ``head`` blocks that answers for at most ``most`` of them at once."""

    def __init__(self, head: int, most: int = 10**9) -> None:
        super().__init__()
        self.height = head
        self.most = most
        self.branch = 1
        self.ranges: list[tuple[int, int]] = []
        self.before_logs = lambda: None

    def hash(self, number: int) -> str:
        return f"0x{self.branch:032x}{number:032x}"

    @property
    def endpoints(self) -> list["Node"]:
        return [self]

    async def make_batch_request(self, requests: Any) -> list[RPCResponse]:
        return [await self.make_request(*request) for request in requests]

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        if method == "eth_blockNumber":
            return {"jsonrpc": "2.0", "id": 1, "result": hex(self.height)}
        if method == "eth_getBlockByNumber":
            number = int(params[0], 16)
            block = {
                "number": hex(number),
                "hash": self.hash(number),
                "parentHash": self.hash(number - 1) if number else "0x0",
                "receiptsRoot": "0x0",
                "logsBloom": "0x0",
                "timestamp": "0x0",
                "transactions": ["0x1"],
            }
            found = block if number <= self.height else None
            return {"jsonrpc": "2.0", "id": 1, "result": found}
        if method in ("eth_getBlockReceipts", "eth_getTransactionReceipt"):
            refusal = {"code": -32603, "message": "internal error"}
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "error": refusal})
        assert method == "eth_getLogs", method
        first, last = (int(params[0][field], 16) for field in ("fromBlock", "toBlock"))
        if last - first + 1 > self.most:
            refusal = {"code": -32005, "message": "query returned more than 10000 results"}
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "error": refusal})
        self.ranges.append((first, last))
        self.before_logs()
        return {"jsonrpc": "2.0", "id": 1, "result": []}

    async def disconnect(self) -> None:
        """Nothing is open."""


def reader_of(node: Node, *, confirmations: int = 0) -> EscrowEventReader:
    return EscrowEventReader(
        ChainClient(cast(FailoverProvider, node)), ESCROW, confirmations=confirmations
    )


def genesis(node: Node) -> Block:
    return Block(0, node.hash(0))


async def read(node: Node, **values: int) -> EventRange:
    reading = await reader_of(node, **values).read_after(genesis(node))
    assert reading is not None
    return reading


async def test_a_range_that_is_refused_is_halved_until_it_is_taken() -> None:
    node = Node(head=100, most=7)
    reading = await read(node)
    assert (reading.first, reading.last, reading.at_head) == (1, 100, True)
    covered = [block for first, last in node.ranges for block in range(first, last + 1)]
    assert covered == list(range(1, 101)), "each block once"


async def test_a_block_that_is_refused_alone_is_an_error() -> None:
    with pytest.raises(ChainError, match="refuses block 1"):
        await read(Node(head=100, most=0))


async def test_a_reading_is_no_longer_than_a_range() -> None:
    reading = await read(Node(head=5000), confirmations=15)
    assert (reading.last, reading.at_head, reading.confirmed.number) == (2000, False, 2000)


async def test_unconfirmed_blocks_are_read_and_do_not_count() -> None:
    node = Node(head=100)
    reading = await read(node, confirmations=15)
    assert (reading.last, reading.confirmed) == (100, Block(85, node.hash(85)))
    shallow = await read(Node(head=9), confirmations=15)
    assert shallow.confirmed.number == 0, "nothing new counts"


async def test_without_new_blocks_there_is_no_range() -> None:
    node = Node(head=7)
    assert await reader_of(node).read_after(Block(7, node.hash(7))) is None


async def test_a_hash_that_changed_is_a_reorg() -> None:
    node = Node(head=7)
    known = Block(7, node.hash(7))
    node.branch = 2
    with pytest.raises(ChainReorg):
        await reader_of(node).read_after(known)


async def test_a_reorg_between_two_requests_is_noticed() -> None:
    node = Node(head=100)

    def leave() -> None:
        node.branch = 2

    node.before_logs = leave
    with pytest.raises(ChainMoved):
        await read(node)


async def test_a_node_that_falls_behind_is_no_reorg() -> None:
    node = Node(head=7)
    known = Block(9, node.hash(9))
    with pytest.raises(ChainMoved, match="behind"):
        await reader_of(node).read_after(known)


@pytest.fixture
def large_answers() -> Iterator[str]:
    """A server whose answers are longer than a megabyte."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"jsonrpc": "2.0", "id": 1, "result": "' + b"0" * 2**20 + b'"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


async def test_an_answer_that_is_too_large_is_not_read(
    large_answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpc = FailoverProvider([large_answers])
    assert len((await rpc.make_request(RPCEndpoint("web3_sha3"), []))["result"]) == 2**20
    monkeypatch.setattr(bounded_http, "MAX_ANSWER_BYTES", 2**16)
    with pytest.raises(AnswerTooLarge):
        await rpc.make_request(RPCEndpoint("web3_sha3"), [])
    await rpc.disconnect()
