"""Several endpoints as one: failover, staleness, and sending to all."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from web3.types import RPCEndpoint

from market.chain.client import ChainClient
from market.chain.errors import ChainError, ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.chain.rpc_errors import SendOutcome
from market.settings.payments import PaymentsSettings
from mesh.clock_skew import CLOCK_SKEW
from tests.support.chain.rpc_proxy import Call, Loss, Proxy

UNREACHABLE = "http://127.0.0.1:1"
RAW = b"\x02\xc0"


class Node:
    """An endpoint whose head is what the test says, and which names itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 100
        self.age = 0.0
        self.refusal: dict[str, Any] | None = None
        self.silent = False
        self.chain_id = 56
        self.proxy = Proxy(UNREACHABLE, self._answer)

    def _answer(self, call: Call) -> Any:
        if self.silent:
            return Loss.REQUEST
        if call["method"] == "eth_chainId":
            return {"result": hex(self.chain_id)}
        if call["method"] == "eth_getBlockByNumber":
            born = int(time.time() - self.age)
            return {"result": {"number": hex(self.number), "timestamp": hex(born)}}
        return {"error": self.refusal} if self.refusal else {"result": self.name}

    @property
    def asked(self) -> list[str]:
        return [call["method"] for call in self.proxy.calls]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        made = [Node(name) for name in ("first", "second", "third")]
        for node in made:
            stack.enter_context(node.proxy.serving())
        yield made


@pytest.fixture
async def rpc(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("market.chain.failover_rpc.POLL_SECONDS", 0.0)
    opened = FailoverProvider([node.proxy.url for node in nodes], max_age=60, max_lag=5, timeout=5)
    yield opened
    await opened.disconnect()


async def ask(rpc: FailoverProvider) -> Any:
    return (await rpc.make_request(RPCEndpoint("web3_clientVersion"), []))["result"]


async def test_the_first_answers_while_all_are_equal(rpc: FailoverProvider) -> None:
    assert await ask(rpc) == "first"


async def test_the_next_answers_when_the_first_is_silent(
    rpc: FailoverProvider, nodes: list[Node]
) -> None:
    nodes[0].silent = True
    assert await ask(rpc) == "second"
    nodes[0].silent = False
    assert await ask(rpc) == "first"


async def test_one_that_falls_silent_between_polls_is_skipped(
    rpc: FailoverProvider, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market.chain.failover_rpc.POLL_SECONDS", 3600.0)
    assert await ask(rpc) == "first"
    nodes[0].silent = True
    assert await ask(rpc) == "second"


@pytest.mark.parametrize(
    ("worsen", "answers"),
    [
        (lambda node: setattr(node, "number", 94), "second"),
        (lambda node: setattr(node, "number", 95), "second"),
        (lambda node: setattr(node, "age", 61.0 + CLOCK_SKEW), "second"),
        (lambda node: setattr(node, "age", 30.0), "first"),
        (lambda node: setattr(node, "number", 101), "first"),
    ],
    ids=["too far behind", "behind: the best is asked", "old", "young enough", "ahead"],
)
async def test_the_best_fresh_one_answers(
    rpc: FailoverProvider, nodes: list[Node], worsen: Callable[[Node], None], answers: str
) -> None:
    worsen(nodes[0])
    assert await ask(rpc) == answers


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 3])
async def test_an_absurd_head_makes_no_other_stale(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, liar: int, count: int
) -> None:
    monkeypatch.setattr("market.chain.failover_rpc.POLL_SECONDS", 0.0)
    some = nodes[:count]
    some[liar % count].number = 10**12
    rpc = FailoverProvider([node.proxy.url for node in some], max_age=60, max_lag=5, timeout=5)
    honest = next(node for node in some if node.number < 10**12)
    assert await ask(rpc) == honest.name
    assert await rpc.is_connected()
    await rpc.disconnect()


async def test_one_that_lacks_a_block_is_skipped(rpc: FailoverProvider, nodes: list[Node]) -> None:
    nodes[0].refusal = {"code": -32000, "message": "header not found"}
    assert await ask(rpc) == "second"


async def test_one_that_is_too_far_behind_is_not_even_the_last_resort(
    rpc: FailoverProvider, nodes: list[Node]
) -> None:
    nodes[0].number = 10
    nodes[1].refusal = nodes[2].refusal = {"code": -32005, "message": "limit exceeded"}
    with pytest.raises(ChainUnreachable):
        await ask(rpc)
    assert "web3_clientVersion" not in nodes[0].asked


async def test_a_rate_limited_one_is_skipped(rpc: FailoverProvider, nodes: list[Node]) -> None:
    nodes[0].refusal = {"code": -32005, "message": "limit exceeded"}
    assert await ask(rpc) == "second"


async def test_an_error_of_the_chain_is_an_answer(rpc: FailoverProvider, nodes: list[Node]) -> None:
    nodes[0].refusal = {"code": 3, "message": "execution reverted", "data": "0x"}
    answer = await rpc.make_request(RPCEndpoint("eth_call"), [])
    assert answer["error"]["code"] == 3
    assert "eth_call" not in nodes[1].asked


async def test_a_clock_may_be_some_seconds_ahead(rpc: FailoverProvider, nodes: list[Node]) -> None:
    for node in nodes:
        node.age = 60 + 3
    assert await ask(rpc) == "first"


async def test_stale_endpoints_alone_are_not_used(rpc: FailoverProvider, nodes: list[Node]) -> None:
    for node in nodes:
        node.age = 3600
    with pytest.raises(ChainUnreachable, match="fresh"):
        await ask(rpc)
    for node in nodes:
        node.age = 0
    assert await ask(rpc) == "first"


async def test_no_endpoint_answers() -> None:
    rpc = FailoverProvider([UNREACHABLE], timeout=1)
    with pytest.raises(ChainUnreachable):
        await ask(rpc)
    await rpc.disconnect()


async def test_an_error_does_not_show_the_url() -> None:
    rpc = FailoverProvider(["http://127.0.0.1:1/v3/secret-key"], timeout=1)
    with pytest.raises(ChainUnreachable) as refused:
        await ask(rpc)
    assert "secret-key" not in str(refused.value)
    await rpc.disconnect()


async def test_one_url_is_enough_and_needs_no_comparing(nodes: list[Node]) -> None:
    rpc = FailoverProvider([nodes[0].proxy.url])
    assert await ask(rpc) == "first"
    assert nodes[0].asked == ["web3_clientVersion"]
    await rpc.disconnect()


async def test_one_of_another_chain_is_skipped(nodes: list[Node]) -> None:
    nodes[0].chain_id = 97
    rpc = FailoverProvider([node.proxy.url for node in nodes], chain_id=56)
    assert await ask(rpc) == "second"
    assert await ChainClient(rpc).send(RAW) is SendOutcome.ACCEPTED
    assert set(nodes[0].asked) == {"eth_chainId"}
    assert nodes[1].asked.count("eth_chainId") == 1
    await rpc.disconnect()


async def test_the_only_one_is_of_another_chain(nodes: list[Node]) -> None:
    rpc = FailoverProvider([nodes[0].proxy.url], chain_id=97)
    with pytest.raises(ChainUnreachable, match="chain 0x38, not 0x61"):
        await ask(rpc)
    await rpc.disconnect()


async def test_a_transaction_goes_to_all(rpc: FailoverProvider, nodes: list[Node]) -> None:
    nodes[1].number = 1  # stale: it may still pass a transaction on
    assert await ChainClient(rpc).send(RAW) is SendOutcome.ACCEPTED
    assert all("eth_sendRawTransaction" in node.asked for node in nodes)


ALREADY = {"code": -32000, "message": "already known"}
TOO_LOW = {"code": -32000, "message": "nonce too low: next nonce 5, tx nonce 4"}
UNDERPRICED = {"code": -32000, "message": "replacement transaction underpriced"}
BROKEN = {"code": -32000, "message": "insufficient funds for gas * price + value"}


@pytest.mark.parametrize(
    ("refusals", "outcome"),
    [
        ([ALREADY, ALREADY, ALREADY], SendOutcome.ACCEPTED),
        ([TOO_LOW, ALREADY, TOO_LOW], SendOutcome.ACCEPTED),
        ([TOO_LOW, None, BROKEN], SendOutcome.ACCEPTED),
        ([TOO_LOW, TOO_LOW, BROKEN], SendOutcome.NONCE_USED),
        ([UNDERPRICED, BROKEN, UNDERPRICED], SendOutcome.UNDERPRICED),
        ([TOO_LOW, UNDERPRICED, UNDERPRICED], SendOutcome.NONCE_USED),
    ],
)
async def test_outcomes_of_sending(
    rpc: FailoverProvider, nodes: list[Node], refusals: list[Any], outcome: SendOutcome
) -> None:
    for node, refusal in zip(nodes, refusals, strict=True):
        node.refusal = refusal
    assert await ChainClient(rpc).send(RAW) is outcome


async def test_a_transaction_that_all_refuse_is_an_error(
    rpc: FailoverProvider, nodes: list[Node]
) -> None:
    for node in nodes:
        node.refusal = BROKEN
    with pytest.raises(ChainError, match="insufficient funds"):
        await ChainClient(rpc).send(RAW)


async def test_a_transaction_that_no_endpoint_receives_may_be_sent_again(
    rpc: FailoverProvider, nodes: list[Node]
) -> None:
    for node in nodes:
        node.silent = True
    with pytest.raises(ChainUnreachable):
        await ChainClient(rpc).send(RAW)
    nodes[2].silent = False
    assert await ChainClient(rpc).send(RAW) is SendOutcome.ACCEPTED


@pytest.mark.parametrize(
    ("written", "urls"),
    [
        ("https://a.example", ["https://a.example"]),
        ("https://a.example, https://b.example", ["https://a.example", "https://b.example"]),
        (["https://a.example"], ["https://a.example"]),
    ],
)
def test_urls_are_written_as_text_or_as_a_list(written: Any, urls: list[str]) -> None:
    assert PaymentsSettings(rpc_urls=written).rpc_urls == urls
