"""What may stand in the DHT, and who may say it.

Strangers store and answer there, so every record proves itself to whoever knows the operator's
public key, without a database:

- a **credential** is signed by the operator when a node registers: this key speaks for this node;
- an **announcement** is signed by that key and carries the credential: this node serves this span;
- the **platform's endpoints** are signed by the operator: the platform is at these URLs.

What a record says of its own end is signed, too. So nobody can write, replace or prolong another's
record, and an old one cannot come back over a newer one.
"""

import time
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

import msgpack

from mesh.dht.signing_keys import KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify
from mesh.errors import RecordRefused
from mesh.wire.limits import MAX_MODEL_ID

ENDPOINTS_KEY = "far-mesh/discovery"
ENDPOINTS_SUBKEY = "url"

MAX_RECORD_BYTES = 2048
"""An announcement has some 400 bytes."""

MAX_EXPIRY_AHEAD = 600.0
"""Seconds ahead that an announcement or the endpoints may expire: how long a node that is gone can
go on being listed, and how far a clock may be wrong."""

MAX_TEXT = MAX_MODEL_ID
"""Characters of a node id, a model id or a URL: a model id may be the longest of them."""

MAX_URLS = 5

_CREDENTIAL = b"far-mesh dht credential 1\0"
_ANNOUNCEMENT = b"far-mesh dht announcement 1\0"
_ENDPOINTS = b"far-mesh dht signpost 1\0"

_RANGES: dict[Any, tuple[float, float]] = {int: (0, 10**9), float: (0.0, 1e12)}
"""Figures beyond these are no node's, and could break sums."""

T = TypeVar("T", "Credential", "Announcement", "PlatformEndpoints")


@dataclass(frozen=True, slots=True)
class Credential:
    """The operator's word that a key speaks for a node of a model with that many layers, until
    ``expires`` (Unix time). ``registration``: how often the node has registered."""

    node_id: str
    registration: int
    model_id: str
    layers: int
    public_key: bytes
    expires: float


@dataclass(frozen=True, slots=True)
class Announcement:
    """A node's word: the span that it serves and what it measured, worth something until
    ``expires`` (Unix time). Units as in `market.nodes.node.Node`."""

    node_id: str
    registration: int
    model_id: str
    start_layer: int
    end_layer: int
    latency_ms: float
    throughput_tokens_per_sec: float
    current_requests: int
    kv_positions: int
    expires: float


@dataclass(frozen=True, slots=True)
class PlatformEndpoints:
    """The operator's word: where the platform answers by HTTP, until ``expires`` (Unix time)."""

    urls: list[str]
    expires: float


def announcements_key(model_id: str) -> str:
    """The DHT's key of a model: a dictionary, node id to announcement."""
    return f"far-mesh/spans/{model_id}"


def issue_credential(
    operator: SigningKey,
    *,
    node_id: str,
    registration: int,
    model_id: str,
    layers: int,
    public_key: bytes,
    expires: float,
) -> bytes:
    """A credential, for a node that has proved its wallet."""
    credential = Credential(node_id, registration, model_id, layers, public_key, expires)
    return _signed(operator, _CREDENTIAL, credential)


def sign_announcement(key: SigningKey, credential: bytes, announcement: Announcement) -> bytes:
    """A record for `announcements_key`, under the node's id."""
    packed: bytes = msgpack.packb([_signed(key, _ANNOUNCEMENT, announcement), credential])
    return packed


def sign_endpoints(operator: SigningKey, endpoints: PlatformEndpoints) -> bytes:
    """A record for `ENDPOINTS_KEY`, under `ENDPOINTS_SUBKEY`."""
    return _signed(operator, _ENDPOINTS, endpoints)


def read_announcement(record: bytes, operator: bytes) -> Announcement:
    """The announcement, which may have expired: look at its ``expires``.

    Raises:
        RecordRefused: by size, format, signature, credential, expiry (too far ahead) or span.
    """
    signed, credential_record = _parts(record)
    credential = _credential(credential_record, operator)
    announcement = _verified(signed, credential.public_key, _ANNOUNCEMENT, Announcement)
    if _registration_of(announcement) != _registration_of(credential):
        raise RecordRefused("This credential is another node's.", reason="credential")
    if announcement.expires > credential.expires:
        raise RecordRefused("The credential ends before the announcement.", reason="credential")
    if not announcement.start_layer < announcement.end_layer <= credential.layers:
        raise RecordRefused("The span is not within the model.", reason="span")
    _check_expiry(announcement.expires)
    return announcement


def read_endpoints(record: bytes, operator: bytes) -> PlatformEndpoints:
    """The platform's endpoints, which may have expired: look at their ``expires``.

    Raises:
        RecordRefused: by size, format, signature or expiry (too far ahead).
    """
    endpoints = _verified(record, operator, _ENDPOINTS, PlatformEndpoints)
    _check_expiry(endpoints.expires)
    return endpoints


def _signed(key: SigningKey, purpose: bytes, content: Any) -> bytes:
    body = msgpack.packb(list(astuple(content)))
    packed: bytes = msgpack.packb([body, key.sign(purpose, body)])
    return packed


def _verified(signed: bytes, public: bytes, purpose: bytes, kind: type[T]) -> T:
    body, signature = _parts(signed)
    if len(signature) != SIGNATURE_BYTES or not verify(public, signature, purpose, body):
        raise RecordRefused("The signature is not its owner's.", reason="signature")
    values = _unpack(body)
    types = get_type_hints(kind)
    if not isinstance(values, list) or len(values) != len(types):
        raise RecordRefused("The record has other fields.", reason="format")
    if not all(map(_is_valid, values, types.values())):
        raise RecordRefused("A field's type or size is wrong.", reason="format")
    return kind(*values)


@lru_cache(maxsize=4096)
def _credential(record: bytes, operator: bytes) -> Credential:
    """Cached, since all announcements of a node carry one credential."""
    return _verified(record, operator, _CREDENTIAL, Credential)


def _parts(record: bytes) -> tuple[bytes, bytes]:
    parts = _unpack(record)
    if not isinstance(parts, list) or len(parts) != 2:
        raise RecordRefused("The record has not two parts.", reason="format")
    first, second = parts
    if not isinstance(first, bytes) or not isinstance(second, bytes):
        raise RecordRefused("The record's parts are not bytes.", reason="format")
    return first, second


def _unpack(packed: bytes) -> Any:
    if len(packed) > MAX_RECORD_BYTES:
        raise RecordRefused(f"The record has over {MAX_RECORD_BYTES} bytes.", reason="size")
    try:
        return msgpack.unpackb(packed)
    except Exception:  # msgpack raises whatever its parsers raise on a stranger's bytes
        raise RecordRefused("The record is no msgpack.", reason="format") from None


def _is_valid(value: Any, kind: Any) -> bool:
    if kind is str:
        return isinstance(value, str) and 0 < len(value) <= MAX_TEXT
    if kind is bytes:
        return isinstance(value, bytes) and len(value) == KEY_BYTES
    if kind == list[str]:
        return (
            isinstance(value, list)
            and 0 < len(value) <= MAX_URLS
            and all(_is_valid(each, str) for each in value)
        )
    least, most = _RANGES[kind]
    return type(value) is kind and least <= value <= most


def _registration_of(record: Credential | Announcement) -> tuple[str, int, str]:
    return record.node_id, record.registration, record.model_id


def _check_expiry(expires: float) -> None:
    if expires - time.time() > MAX_EXPIRY_AHEAD:
        raise RecordRefused(
            f"The record expires over {MAX_EXPIRY_AHEAD:.0f} s ahead.", reason="expiry"
        )
