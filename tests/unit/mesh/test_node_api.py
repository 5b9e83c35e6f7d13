"""Node and gateway agree on what they say to each other over HTTP."""

from dataclasses import fields
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.routes import auth, nodes
from api.schemas.nodes import HeartbeatBody, RegistrationBody
from mesh import node_api

OTHERS_REGISTRATION = {"node_id", "layers_served"}
"""For nodes of others: a name that they would like, and the span in the specification's form."""

PROOF = {"nonce", "signature", "expires_at"}

OTHERS_HEARTBEAT = {"model_id", "last_seen"}
"""The specification's, which nobody reads."""


def names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def route(router: Any, path: str, method: str) -> APIRoute:
    [found] = [
        each
        for each in router.routes
        if isinstance(each, APIRoute) and each.path == path and method in each.methods
    ]
    return found


def answer_of(path: str) -> type[BaseModel]:
    found: type[BaseModel] = route(nodes.router, path, "POST").response_model
    return found


def test_a_registration_has_the_fields_of_its_body() -> None:
    expected = set(RegistrationBody.model_fields) - OTHERS_REGISTRATION - PROOF
    assert names(node_api.NodeRegistration) == expected


def test_a_heartbeat_has_the_fields_of_its_body() -> None:
    expected = set(HeartbeatBody.model_fields) - OTHERS_HEARTBEAT - {"node_id"}
    assert names(node_api.Heartbeat) == expected


@pytest.mark.parametrize(
    ("reply", "path", "others"),
    [
        (
            node_api.RegistrationReply,
            node_api.REGISTRATION_PATH,
            {"status", "discovery_url"},
        ),
        (node_api.HeartbeatReply, node_api.HEARTBEAT_PATH, {"status"}),
    ],
)
def test_a_reply_has_the_fields_that_the_gateway_answers(
    reply: type, path: str, others: set[str]
) -> None:
    """Apart from what the specification has beside."""
    assert names(reply) == set(answer_of(path).model_fields) - others


def test_access_to_the_dht_has_the_fields_that_the_gateway_answers() -> None:
    access = answer_of(node_api.REGISTRATION_PATH).model_fields["dht"].annotation
    [body] = [each for each in access.__args__ if each is not type(None)]  # type: ignore[union-attr]
    assert body is node_api.DhtAccess


def test_defaults_are_the_same_on_both_sides() -> None:
    """So that what a node leaves as it is means what it means where the field is left out."""
    for kind, body in (
        (node_api.NodeRegistration, RegistrationBody),
        (node_api.Heartbeat, HeartbeatBody),
    ):
        for field in fields(kind):
            default = body.model_fields[field.name]
            if not default.is_required():
                assert field.default in (default.default, tuple(default.default or ())), field.name


def test_a_nonce_comes_from_its_path() -> None:
    assert route(auth.router, node_api.NONCE_PATH, "GET")
