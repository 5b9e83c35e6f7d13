"""Raw JSON-RPC with the development chain."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from stack.dev_chain_client import development_account

Ask = Callable[..., Any]
RICH = development_account(6)

_numbers = itertools.count(1)


@pytest.fixture
def http(chain_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=chain_url, timeout=60) as client:
        yield client


@pytest.fixture
def answer(http: httpx.Client) -> Ask:
    """A call's whole answer."""

    def ask(method: str, *params: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": next(_numbers), "method": method, "params": params}
        read = http.post("/", json=call).raise_for_status().json()
        assert read["id"] == call["id"]
        return read

    return ask


@pytest.fixture
def result(answer: Ask) -> Ask:
    """A call's result."""

    def ask(method: str, *params: Any) -> Any:
        read = answer(method, *params)
        assert "error" not in read, read
        return read["result"]

    return ask


@pytest.fixture
def error(answer: Ask) -> Ask:
    """A call's error."""

    def ask(method: str, *params: Any) -> Any:
        return answer(method, *params)["error"]

    return ask
