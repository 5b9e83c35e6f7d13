"""Keys from a secret."""

from market.key_derivation import derive_key


def test_as_rfc_5869_has_it() -> None:
    """By the RFC's third test vector, whose salt and info are empty."""
    expected = (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )
    assert derive_key(b"\x0b" * 22, "", size=42).hex() == expected


def test_each_purpose_has_its_own() -> None:
    keys = {derive_key(b"secret" * 6, purpose) for purpose in ("a", "b")}
    keys.add(derive_key(b"Secret" * 6, "a"))
    assert len(keys) == 3
