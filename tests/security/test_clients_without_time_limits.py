"""Code that opens a client of its own, without time limits, and waits for ever for a server."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("api", "cli", "discovery", "market", "mesh", "node_runner", "stack", "workers")

REDIS = {"market/clients/redis_client.py", "node_runner/transport/redis_transport.py"}
STACK = {"stack/chat.py", "stack/demo.py", "stack/development_stack.py", "stack/servers.py"}
"""Commands for one machine, on which whoever typed them looks on."""

OPENERS: dict[str, set[str]] = {
    "aiohttp.ClientSession": set(),
    "aiohttp.request": set(),
    "arq.connections.ArqRedis": {"market/queue.py"},
    "arq.connections.RedisSettings": set(),
    "arq.connections.create_pool": set(),
    "arq.create_pool": set(),
    "asyncio.open_connection": set(),
    "asyncio.open_unix_connection": set(),
    "asyncpg.connect": set(),
    "asyncpg.create_pool": set(),
    "boto3.Session": set(),
    "boto3.client": {"market/clients/aws.py"},
    "boto3.resource": set(),
    "boto3.session": set(),
    "http.client": set(),
    "httpx.AsyncClient": set(),
    "httpx.Client": {"node_runner/http_client.py", *STACK},
    "httpx.delete": set(),
    "httpx.get": set(),
    "httpx.head": set(),
    "httpx.patch": set(),
    "httpx.post": set(),
    "httpx.put": set(),
    "httpx.request": set(),
    "httpx.stream": {"market/clients/http_reader.py"},
    "redis.BlockingConnectionPool": set(),
    "redis.Connection": set(),
    "redis.ConnectionPool": REDIS,
    "redis.Redis": {*REDIS, *STACK},
    "redis.asyncio.BlockingConnectionPool": set(),
    "redis.asyncio.Connection": REDIS,
    "redis.asyncio.ConnectionPool": REDIS,
    "redis.asyncio.Redis": REDIS,
    "redis.asyncio.RedisCluster": set(),
    "redis.asyncio.from_url": set(),
    "redis.from_url": set(),
    "requests": set(),
    "smtplib": set(),
    "socket.create_connection": set(),
    "sqlalchemy.create_engine": set(),
    "sqlalchemy.ext.asyncio.create_async_engine": {"market/clients/postgres.py"},
    "urllib.request": set(),
    "web3.AsyncHTTPProvider": {"market/chain/bounded_http.py"},
    "web3.AsyncWeb3.AsyncHTTPProvider": set(),
    # Its requests take 30 s at most: web3's default.
    "web3.HTTPProvider": {"market/chain/open_web3.py"},
    "web3.Web3.HTTPProvider": set(),
    "websockets.asyncio.client.connect": set(),
    "websockets.connect": set(),
    "websockets.sync.client.connect": {"node_runner/transport/websocket_connection.py"},
}
"""What opens a client, and the files that may."""

TYPES_TOO = {
    "arq.connections.ArqRedis",
    "httpx.Client",
    "httpx.AsyncClient",
    "redis.Redis",
    "redis.ConnectionPool",
    "redis.asyncio.Connection",
    "redis.asyncio.ConnectionPool",
    "redis.asyncio.Redis",
}
"""Those that annotations name: of them only calls count, their class methods' included."""

BLOCKING = {"blmove", "blmpop", "blpop", "brpop", "brpoplpush", "bzpopmax", "bzpopmin", "bzmpop"}
"""Commands of Redis that wait for as long as they are told."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(module: ast.Module) -> dict[str, str]:
    """What each name that a module imports stands for."""
    names = {}
    for statement in ast.walk(module):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for alias in statement.names:
                names[alias.asname or alias.name] = f"{statement.module}.{alias.name}"
    return names


def qualified(node: ast.AST, names: dict[str, str]) -> str:
    """The full name of what an expression names; empty if it names nothing imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        owner = qualified(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def opened(module: ast.Module) -> set[str]:
    """Openers that a module uses."""
    names = imported(module)
    found = set()
    for node in ast.walk(module):
        called = isinstance(node, ast.Call)
        name = qualified(node.func if isinstance(node, ast.Call) else node, names)
        if not name:
            continue
        found |= {
            opener
            for opener in OPENERS
            if (called or opener not in TYPES_TOO)
            and (name == opener or name.startswith(opener + "."))
        }
    return found


def test_each_kind_of_client_is_opened_in_one_place() -> None:
    strangers = [
        f"{file}: {opener} belongs to {', '.join(sorted(OPENERS[opener])) or 'nobody'}"
        for file, module in modules()
        for opener in sorted(opened(module))
        if file not in OPENERS[opener]
    ]
    assert not strangers, "\n".join(strangers)


@pytest.mark.parametrize(
    "line",
    [
        "from redis.asyncio import Redis\nRedis.from_url('redis://')",
        "import redis.asyncio as r\nr.Redis(host='x')",
        "from httpx import get as fetch\nfetch('http://x')",
        "import httpx\nopen_client = httpx.AsyncClient()",
        "from sqlalchemy.ext import asyncio\nasyncio.create_async_engine('x')",
        "import urllib.request\nurllib.request.urlopen('http://x')",
        "import boto3\nmake = boto3.client",
        "from arq import create_pool\ncreate_pool()",
    ],
)
def test_the_check_finds_them_however_they_are_named(line: str) -> None:
    assert opened(ast.parse(line))


def test_what_blocks_in_redis_blocks_for_less_than_the_time_limit_of_silence() -> None:
    unbounded = [
        f"{file}:{node.lineno}"
        for file, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if blocks_unbounded(node.func.attr, {each.arg: each.value for each in node.keywords})
    ]
    assert not unbounded, f"Not by block_ms or MAX_BLOCK: {unbounded}"


def blocks_unbounded(method: str, arguments: dict[str | None, ast.expr]) -> bool:
    if method in ("xread", "xreadgroup") and "block" in arguments:
        return "block_ms(" not in ast.unparse(arguments["block"])
    return method in BLOCKING and ast.unparse(arguments["timeout"]) != "MAX_BLOCK"


def test_commands_packed_by_hand_block_in_two_places_only() -> None:
    found = {
        file
        for file, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and node.value == "BLOCK"
    }
    assert found == {"api/relay/hub.py", "node_runner/transport/redis_transport.py"}
