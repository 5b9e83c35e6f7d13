"""The operator's Ed25519 key, which all that stands in the DHT goes back to."""

from market.settings.discovery import DiscoverySettings
from mesh.dht.signing_keys import SigningKey


def operator_key(discovery: DiscoverySettings) -> SigningKey | None:
    """The key that the settings name; none where there is no DHT.

    Raises:
        ValueError: what the settings name is no Ed25519 seed.
    """
    seed = discovery.dht_operator_key.get_secret_value()
    if not seed:
        return None
    try:
        return SigningKey.from_hex(seed)
    except ValueError:
        raise ValueError(
            "FAR_DISCOVERY__DHT_OPERATOR_KEY must be 32 bytes in hex. "
            "Make one: openssl rand -hex 32"
        ) from None
