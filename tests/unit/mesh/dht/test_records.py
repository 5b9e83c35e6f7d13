"""Who may say what in the DHT: each rule by a record that breaks it."""

import contextlib
import dataclasses
import subprocess
import sys
import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dht import records
from mesh.dht.signing_keys import SigningKey, public_from_hex
from mesh.errors import RecordRefused

OPERATOR = SigningKey.from_hex("11" * 32)
KEY = SigningKey.from_hex("22" * 32)
STRANGER = SigningKey.from_hex("33" * 32)
LAYERS = 6


def credential(operator: SigningKey = OPERATOR, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "node_id": "node_1",
        "registration": 1,
        "model_id": "far/model",
        "layers": LAYERS,
        "public_key": KEY.public,
        "expires": time.time() + 1000,
    }
    return records.issue_credential(operator, **(values | changes))


def announcement(**changes: Any) -> records.Announcement:
    announced = records.Announcement(
        node_id="node_1",
        registration=1,
        model_id="far/model",
        start_layer=0,
        end_layer=3,
        latency_ms=5.0,
        throughput_tokens_per_sec=100.0,
        current_requests=2,
        kv_positions=4096,
        expires=time.time() + 60,
    )
    return dataclasses.replace(announced, **changes)


def refused(record: bytes) -> str:
    """The reason."""
    with pytest.raises(RecordRefused) as raised:
        records.read_announcement(record, OPERATOR.public)
    return raised.value.reason


def test_what_a_node_announces_is_read_by_whoever_knows_the_operators_key() -> None:
    announced = announcement()
    record = records.sign_announcement(KEY, credential(), announced)
    assert len(record) < records.MAX_RECORD_BYTES / 4
    assert records.read_announcement(record, OPERATOR.public) == announced


def test_a_stranger_cannot_announce() -> None:
    own_credential = credential(STRANGER, public_key=STRANGER.public)
    assert (
        refused(records.sign_announcement(STRANGER, own_credential, announcement())) == "signature"
    )
    assert refused(records.sign_announcement(STRANGER, credential(), announcement())) == "signature"


def test_a_node_speaks_for_itself_only() -> None:
    for changes in ({"node_id": "node_2"}, {"model_id": "far/other"}, {"registration": 2}):
        record = records.sign_announcement(KEY, credential(), announcement(**changes))
        assert refused(record) == "credential", changes


def test_a_signature_holds_for_its_purpose_only() -> None:
    endpoints = records.sign_endpoints(
        OPERATOR, records.PlatformEndpoints(["https://a.example"], time.time() + 60)
    )
    with pytest.raises(RecordRefused, match="signature"):
        records.read_endpoints(credential(), OPERATOR.public)
    assert refused(msgpack.packb([endpoints, credential()])) == "signature"


@pytest.mark.parametrize(("start", "end"), [(0, LAYERS + 1), (3, 3), (4, 3)])
def test_a_span_is_within_the_model(start: int, end: int) -> None:
    announced = announcement(start_layer=start, end_layer=end)
    assert refused(records.sign_announcement(KEY, credential(), announced)) == "span"


def test_an_announcement_ends_soon_and_not_after_its_credential() -> None:
    late = announcement(expires=time.time() + records.MAX_EXPIRY_AHEAD + 5)
    assert refused(records.sign_announcement(KEY, credential(), late)) == "expiry"
    short = credential(expires=time.time() + 30)
    assert refused(records.sign_announcement(KEY, short, announcement())) == "credential"


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_ms": -1.0},
        {"latency_ms": float("nan")},
        {"throughput_tokens_per_sec": 1e300},
        {"kv_positions": 10**12},
        {"kv_positions": True},
        {"start_layer": -1},
        {"current_requests": "many"},
        {"node_id": ""},
        {"node_id": "n" * 300},
    ],
)
def test_a_figure_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    assert (
        refused(records.sign_announcement(KEY, credential(), announcement(**changes))) == "format"
    )


def test_a_large_record_is_refused_before_it_is_read() -> None:
    assert refused(b"\xc4" * (records.MAX_RECORD_BYTES + 1)) == "size"


@given(st.binary(max_size=600))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(RecordRefused):
        records.read_announcement(noise, OPERATOR.public)
    with pytest.raises(RecordRefused):
        records.read_endpoints(noise, OPERATOR.public)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_byte_of_a_record_can_be_changed(place: int, by: int) -> None:
    announced = announcement()
    record = bytearray(records.sign_announcement(KEY, credential(), announced))
    record[place % len(record)] ^= by
    # Most are refused; a length may also be written in another way that means the same.
    with contextlib.suppress(RecordRefused):
        assert records.read_announcement(bytes(record), OPERATOR.public) == announced


def test_endpoints_are_the_operators() -> None:
    endpoints = records.PlatformEndpoints(
        ["https://a.example", "https://b.example"], time.time() + 60
    )
    assert (
        records.read_endpoints(records.sign_endpoints(OPERATOR, endpoints), OPERATOR.public)
        == endpoints
    )
    with pytest.raises(RecordRefused, match="signature"):
        records.read_endpoints(records.sign_endpoints(STRANGER, endpoints), OPERATOR.public)
    far = records.PlatformEndpoints(
        ["https://a.example"], time.time() + records.MAX_EXPIRY_AHEAD + 5
    )
    with pytest.raises(RecordRefused, match="ahead"):
        records.read_endpoints(records.sign_endpoints(OPERATOR, far), OPERATOR.public)


def test_a_key_is_32_bytes_in_hex() -> None:
    assert SigningKey.from_hex(KEY.seed).public == KEY.public == public_from_hex(KEY.public.hex())
    for text in ("", "zz" * 32, "11" * 31):
        with pytest.raises(ValueError, match=r"bytes|hex"):
            public_from_hex(text)


def test_records_need_no_torch() -> None:
    """The API's container has none, and a node's main process needs no DHT."""
    code = (
        "import sys, mesh.dht.records, market.dht.directory, market.dht.credentials\n"
        "import discovery.restore\n"
        "print([name for name in ('torch', 'hivemind') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
