"""Blocks of proof-of-authority chains, and who may make a client of web3's."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from web3 import Web3
from web3.exceptions import ExtraDataLengthError

from market.chain.client import ChainClient
from market.chain.failover_rpc import FailoverProvider
from market.chain.open_web3 import open_web3
from tests.support.chain.rpc_proxy import Proxy, poa_blocks

ROOT = Path(__file__).parents[4]
PACKAGES = ("api", "cli", "demo", "discovery", "market", "mesh", "node_runner", "stack", "workers")
FOLDERS = (*PACKAGES, "benchmarks", "docs", "tests")
MAKERS = {
    "market/chain/open_web3.py",
    "stack/dev_chain.py",  # the chain itself, on which web3 is no client
    "tests/unit/market/chain/test_open_web3.py",
}


@pytest.fixture
def poa_url(chain_url: str) -> Iterator[str]:
    with Proxy(chain_url, alter=poa_blocks).serving() as proxy:
        yield proxy.url


async def test_blocks_of_proof_of_authority_are_read(poa_url: str) -> None:
    with pytest.raises(ExtraDataLengthError):
        Web3(Web3.HTTPProvider(poa_url)).eth.get_block("latest")
    newest = open_web3(poa_url).eth.get_block("latest")
    chain = ChainClient(FailoverProvider([poa_url]))
    assert await chain.latest_timestamp() == newest["timestamp"]
    assert (await chain.headers(newest["number"], newest["number"]))[0].number == newest["number"]
    await chain.close()


def made(module: ast.Module) -> set[str]:
    """Classes of web3's clients that a module calls, by whatever name it imports them."""
    names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {each.asname or each.name: each.name for each in node.names}
    called = (node.func for node in ast.walk(module) if isinstance(node, ast.Call))
    return {
        name
        for function in called
        if isinstance(function, ast.Name | ast.Attribute)
        and (name := _last_name(function, names)) in ("Web3", "AsyncWeb3")
    }


def _last_name(function: ast.Name | ast.Attribute, names: dict[str, str]) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return names.get(function.id, function.id).split(".")[-1]


def test_one_place_makes_clients() -> None:
    makers = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "Web3" in (text := path.read_text()) and made(ast.parse(text))
    }
    assert makers <= MAKERS, f"By open_web3 instead: {sorted(makers - MAKERS)}"


@pytest.mark.parametrize(
    "line",
    [
        "from web3 import Web3\nWeb3(x)",
        "from web3 import AsyncWeb3 as Client\nClient(x)",
        "import web3 as w\nw.Web3(x)",
        "import web3.main\nweb3.main.Web3(x)",
    ],
)
def test_the_check_finds_them_however_they_are_named(line: str) -> None:
    assert made(ast.parse(line))
