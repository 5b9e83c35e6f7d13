"""Registers a node: proves the wallet, and gets the node's id and token."""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import httpx
import structlog

from mesh import signed_texts
from mesh.node_api import (
    REGISTRATION_PATH,
    DhtAccess,
    NodeRegistration,
    RegistrationReply,
)
from node_runner.platform_client.errors import PlatformError, PlatformUnreachable
from node_runner.platform_client.http import request
from node_runner.platform_client.signing import get_challenge

log = structlog.get_logger()

REPLY_FIELDS = frozenset(field.name for field in fields(RegistrationReply)) - {"dht"}
"""Fields of every answer to a registration."""


def register(
    http: httpx.Client, registration: NodeRegistration, credential: bytes | str
) -> RegistrationReply:
    """Register a node; waits for a platform that does not answer.

    Args:
        credential: The wallet's private key, or the token of a machine that it let in.

    Raises:
        PlatformError: the platform refused.
    """
    while True:
        try:
            return _register(http, registration, credential)
        except PlatformUnreachable as error:
            delay = error.retry_delay()
            log.warning("platform_unreachable", reason=str(error), retry_in=round(delay, 1))
            time.sleep(delay)


def describe(http: httpx.Client, node: RegistrationReply) -> dict[str, Any]:
    """What the platform says of a node, such as why it gets no work; empty if it does not answer,
    or refuses."""
    try:
        return request(http, "GET", f"/api/nodes/{node.node_id}", token=node.node_token)
    except PlatformError:
        return {}


def _register(
    http: httpx.Client, registration: NodeRegistration, credential: bytes | str
) -> RegistrationReply:
    body, token = asdict(registration), None
    if isinstance(credential, str):
        token = credential
    else:
        body |= _proof(http, registration, credential)
    answer = request(http, "POST", REGISTRATION_PATH, body, token=token, required=REPLY_FIELDS)
    access = answer.get("dht")
    return RegistrationReply(
        **_known(RegistrationReply, answer)
        | {"dht": None if access is None else DhtAccess(**_known(DhtAccess, access))}
    )


def _known(kind: type[RegistrationReply | DhtAccess], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an answer that this version knows: a later platform may send more."""
    return {field.name: answer[field.name] for field in fields(kind) if field.name in answer}


def _proof(
    http: httpx.Client, registration: NodeRegistration, private_key: bytes
) -> dict[str, str]:
    """The wallet's signature over what is registered and a fresh nonce."""
    challenge = get_challenge(http)
    start, end = registration.signed_span
    message = signed_texts.registration_message(
        platform=challenge.platform,
        wallet_address=registration.wallet_address,
        model_id=registration.model_id,
        start_layer=start,
        end_layer=end,
        edge=registration.edge,
        nonce=challenge.nonce,
        expires_at=challenge.expires_at,
    )
    return {
        "nonce": challenge.nonce,
        "expires_at": challenge.expires_at,
        "signature": signed_texts.sign(message, private_key),
    }
