"""A stranger sends text whose length costs him little and a parser much."""

import ast
import asyncio
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter
from starlette.datastructures import Headers
from starlette.routing import Mount

from api.app import create_app
from api.http import caller_address
from api.relay.message_rules import is_request_id
from api.routes.inference import jobs
from api.schemas import api_keys as key_schemas
from api.schemas import auth, base, nodes
from api.schemas import jobs as job_schemas
from api.schemas import machines as machine_schemas
from api.schemas import models as model_schemas
from api.schemas.openai import fields as openai_fields
from api.schemas.openai import responses as openai_responses
from api.schemas.openai import sampling as openai_sampling
from api.web import STATIC
from market.catalog.tool_call_style import Marker, ToolCallForm, ToolCallStyle
from market.chat.answer import AnswerReader
from market.identity import login_message
from market.identity.api_key_text import PREFIX, is_well_formed
from market.identity.tokens import verify_token
from market.jobs.tables import Job
from market.receipts import statements
from market.settings.auth import AuthSettings
from mesh import json_text, relay, signed_texts, wire
from mesh.checkpoint.manifest import is_safe_name, read_manifest
from mesh.checkpoint.safetensors_header import parse_header
from mesh.dht.records import read_announcement, read_endpoints
from mesh.relay.codec import is_cursor
from mesh.wire.limits import MAX_STEPS
from node_runner.engine.model.span_checkpoint import SpanSpec, _renamed
from node_runner.retry_after import retry_after
from tests.support.gateway.routes import routes_of
from tests.support.growth import UNITS, check_linear, repeated
from tests.support.patterns import sources


def _job_entry(text: str) -> object:
    return jobs._entry_after(EVENT_ID.validate_python(text), Job(max_tokens=100))


def _forwarded(name: str, proxies: int) -> Callable[[str], object]:
    return lambda text: caller_address.forwarded_for(
        Headers(raw=[(name.encode(), text.encode("latin-1", "replace"))]), proxies
    )


def _retry_after(text: str) -> object:
    return retry_after(
        httpx.Response(429, headers=[(b"retry-after", text.encode("utf-8", "replace"))])
    )


def _answer_reader(form: ToolCallForm) -> Callable[[str], object]:
    style = ToolCallStyle(
        form, "arguments", Marker("<tool_call>", None), Marker("</tool_call>", None), 100
    )

    def read(text: str) -> object:
        reader = AnswerReader(style, ["f"], "req_1")
        for begin in range(0, len(text), 61):
            reader.feed(text[begin : begin + 61])
        reader.finish()
        return reader.answer

    return read


WALLET = "0x" + "11" * 20
AUTH = AuthSettings.model_validate({"jwt_secret": "s" * 32})
EVENT_ID = TypeAdapter(jobs.EventId)
TIME = TypeAdapter(base.Timestamp)

PARSERS: dict[str, Callable[[str], object]] = {
    "a sign-in message": login_message.parse,
    "a signature": lambda text: signed_texts.signed_by("text", text, WALLET),
    "a signed text": lambda text: signed_texts.signed_by(text, "0x" + "11" * 65, WALLET),
    "a token": lambda text: verify_token(AUTH, text),
    "an API key": is_well_formed,
    "an API key's rest": lambda text: is_well_formed(PREFIX + text),
    "a token's header": lambda text: verify_token(AUTH, f"{text}.e30.AAAA"),
    "an address": caller_address.parse,
    "X-Forwarded-For": _forwarded("x-forwarded-for", 1),
    "X-Forwarded-For of many proxies": _forwarded("x-forwarded-for", 16),
    "Forwarded": _forwarded("forwarded", 1),
    "Forwarded of many proxies": _forwarded("forwarded", 16),
    "a time": TIME.validate_python,
    "Last-Event-ID": _job_entry,
    "Idempotency-Key": TypeAdapter(base.IdempotencyKey).validate_python,
    "Prefer": lambda text: [each.strip().lower() for each in text.split(",")],
    "Retry-After": _retry_after,
    "a cell of a table": statements._text,
    "JSON": json_text.loads,
    "a JSON text": lambda text: json_text.loads(json.dumps(text)),
    "a file's name": is_safe_name,
    "a request id": is_request_id,
    "a cursor": is_cursor,
    "a host": TypeAdapter(base.Address).validate_python,
    "a price": TypeAdapter(base.Price).validate_python,
}

PARSERS |= {
    f"calls of tools, as {style} writes them": _answer_reader(style) for style in ToolCallForm
}

BYTES: dict[str, Callable[[bytes], object]] = {
    "a manifest": read_manifest,
    "a manifest's fields": lambda data: read_manifest(
        json.dumps({"version": 1, "files": {data.decode("latin-1"): {}}}).encode()
    ),
    "a safetensors header": lambda data: parse_header(data, len(data) + 8),
    "a frame": relay.decode,
    "a bundle of frames": lambda data: list(relay.unbundle(bytearray(data))),
    "a message": lambda data: wire.decode({b"h": data}, max_items=MAX_STEPS),  # as the relay does
    "an announcement": lambda data: read_announcement(data, bytes(32)),
    "the platform's endpoints": lambda data: read_endpoints(data, bytes(32)),
}

BYTE_UNITS = (
    *(bytes([number]) for number in (0x00, 0x7F, 0x80, 0x81, 0x90, 0x91, 0x9F, 0xA1, 0xC0, 0xFF)),
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xc4\x00",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xdf\x00\x00\x00\x01\x00",
    b"[",
    b'{"a":',
    b'"a":0,',
    b"9",
)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
def test_a_parser_of_text_is_linear(parse: Callable[[str], object]) -> None:
    for unit in UNITS:
        for end in ("", '"', "\n!"):
            check_linear(parse, repeated(unit, end=end), repr(unit))


@pytest.mark.parametrize("parse", BYTES.values(), ids=BYTES)
def test_a_parser_of_bytes_is_linear(parse: Callable[[bytes], object]) -> None:
    for unit in BYTE_UNITS:
        for begin in (b"", b"\x94", b"\xdc\x40\x00"):
            check_linear(parse, repeated(unit, begin), repr(begin + unit))


SIGN_IN_LINES = login_message.SIGNS_IN + "\n0x" + "11" * 20


@pytest.mark.parametrize("unit", ["\n- a://b:", "\n- a:" + "%" * 60, "\n"])
def test_a_sign_in_message_is_linear_within_its_limits(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the limits, which end what is too long before it is read."""
    monkeypatch.setattr(login_message, "MAX_MESSAGE", 10**9)
    monkeypatch.setattr(login_message, "MAX_RESOURCES", 10**9)
    begin = (
        f"a{SIGN_IN_LINES}\n\n\nURI: a:b\nVersion: 1\nChain ID: 1\nNonce: 12345678\n"
        "Issued At: 2026-01-31T12:00:00Z\nResources:"
    )
    check_linear(login_message.parse, repeated(unit, begin))
    check_linear(login_message.parse, repeated(unit, begin, end="\n-"))


def test_a_tensors_name_is_linear() -> None:
    """A header of a stranger's repository may have a hundred megabytes of them."""
    for unit in ("h.1.", "layers.", "h.", ".", "1.", "a.h.1"):
        for end in ("", "\n\n!", "h.1"):
            check_linear(
                lambda text: _renamed(text, SpanSpec(2, 3, edge=True)),
                repeated(unit, end=end),
                repr(unit),
            )


# ----- bodies and routes

BODY_MODULES = (
    auth,
    key_schemas,
    nodes,
    job_schemas,
    machine_schemas,
    model_schemas,
    openai_fields,
    openai_sampling,
    openai_responses,
)


def bodies() -> list[type[BaseModel]]:
    """All that strangers send as JSON."""
    found, waiting = [], [base.RequestBody]
    while waiting:
        known = waiting.pop().__subclasses__()
        found += known
        waiting += known
    return found


def test_all_modules_of_bodies_are_looked_at() -> None:
    for path, tree in sources():
        names = {
            parent.id
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for parent in node.bases
            if isinstance(parent, ast.Name)
        }
        if "RequestBody" in names:
            module = path.removesuffix(".py").replace("/", ".")
            assert module in {each.__name__ for each in BODY_MODULES}, module


@pytest.mark.parametrize("body", bodies(), ids=lambda body: body.__name__)
def test_a_field_of_a_body_is_linear(body: type[BaseModel]) -> None:
    for field in body.model_fields:
        for unit in ("a", "0", ".", "-", "a.", "a:", "0x", "\n", "é", "[", " "):
            for begin in ("", "0x", "1e", "a:"):
                check_linear(
                    lambda value: body.model_validate({field: value}),  # noqa: B023
                    repeated(unit, begin, "!"),
                    f"{field} of {unit!r}",
                )
        check_linear(lambda value: body.model_validate({field: value}), list_of(0), field)  # noqa: B023
        check_linear(lambda value: body.model_validate({field: value}), list_of("a"), field)  # noqa: B023


def list_of(item: object) -> Callable[[int], list[object]]:
    return lambda length: [item] * length


def test_a_path_is_linear(make_settings: Callable[..., Any]) -> None:
    app = create_app(make_settings())
    routes = [route for route in routes_of(app) if not isinstance(route, Mount)]
    found = {route.path_regex.pattern for route in routes}  # type: ignore[attr-defined]
    assert len(found) > 20
    for pattern in found:
        begin = pattern.removeprefix("^").partition("(")[0]
        for unit in ("/", "a", "/files", "a/", "\n"):
            for end in ("", "/files", "\n\n!"):
                check_linear(re.compile(pattern).match, repeated(unit, begin, end), pattern)


def test_ranges_of_a_page_s_file_are_linear(make_settings: Callable[..., Any]) -> None:
    """A browser may ask for parts of a file: as many as fit into a header."""
    app = create_app(make_settings())
    name = next(file.name for file in STATIC.iterdir() if file.is_file())

    async def ask(ranges: str) -> int:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            headers = {"Range": f"bytes={ranges}"}
            return (await client.get(f"/static/{name}", headers=headers)).status_code

    for unit in ("0-0,", "1-,", "-1,", ",", "0-", "9"):
        check_linear(lambda ranges: asyncio.run(ask(ranges)), repeated(unit), unit)


def test_this_list_has_what_is_parsed_of_strangers() -> None:
    """A parser that is added to one of these modules is added here, or is no parser."""
    parsing = {
        "mesh.wire.codec": {"decode", "encode", "tensor_bytes"},
        "mesh.relay.codec": {"decode", "encode", "cursor_order", "is_cursor", "unpack"},
        "mesh.checkpoint.manifest": {
            "read_manifest",
            "is_safe_name",
            "make_manifest",
            "published_files",
        },
        "mesh.checkpoint.safetensors_header": {
            "header_length",
            "parse_header",
            "build_header",
            "bytes_of",
        },
        "mesh.json_text": {"check", "loads"},
        "market.identity.login_message": {"parse"},
        "api.http.caller_address": {
            "address_of",
            "certain_address",
            "forwarded_for",
            "parse",
            "network_of",
        },
    }
    for module, names in parsing.items():
        loaded = __import__(module, fromlist=["_"])
        functions = {
            name
            for name, value in vars(loaded).items()
            if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_")
        }
        assert functions == names, module


JSON_OF_OUR_OWN = {
    "api/routes/inference/sse.py",
    "api/routes/openai/responses.py",
    "market/catalog/checkpoint_files.py",
    "market/catalog/models.py",
    "market/catalog/rendering/process.py",
    "market/catalog/rendering/renderer.py",
    "market/catalog/token_bytes.py",
    "market/chain/keystore_signer.py",
    "market/dht/directory.py",
    "market/escrow/artifacts.py",
    "market/settings/deployment.py",
    "mesh/json_text.py",
    "node_runner/cli/bench.py",
    "node_runner/dht/peer_client.py",
    "node_runner/dht/peer_process.py",
    "node_runner/engine/model/span_checkpoint.py",
    "node_runner/engine/model/span_model.py",
    "node_runner/machine/keystore.py",
    "node_runner/machine/login_file.py",
    "node_runner/node/engine_loader.py",
    "node_runner/service/auto_update.py",
    "node_runner/service/control_socket.py",
    "node_runner/weights/checkpoint_cache.py",
    "stack/chat.py",
    "stack/demo.py",
}
"""Files that read JSON which this machine or its operator wrote. All others read that of strangers,
by `mesh.json_text`."""


def test_json_of_strangers_is_read_in_one_place() -> None:
    found = {
        path
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("loads", "load")
        and getattr(node.value, "id", "") == "json"
    }
    assert found <= JSON_OF_OUR_OWN, found - JSON_OF_OUR_OWN
