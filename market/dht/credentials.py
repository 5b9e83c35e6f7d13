"""What a node needs to announce itself in the DHT, handed out when it has proved its wallet."""

import time

from redis.asyncio import Redis

from market.dht import directory
from market.dht.operator_key import operator_key
from market.settings import Settings
from market.settings.discovery import DiscoverySettings
from mesh.dht.records import issue_credential
from mesh.node_api import DhtAccess


async def bootstrap_peers(redis: Redis, discovery: DiscoverySettings) -> list[str]:
    """Multiaddresses of the operator's DHT peers: those of the settings, and those that run."""
    return sorted({*discovery.dht_bootstrap, *await directory.running_peers(redis)})


async def dht_access(
    redis: Redis,
    settings: Settings,
    *,
    node_id: str,
    registration: int,
    model_id: str,
    layers: int,
    dht_key: str | None,
) -> DhtAccess | None:
    """For a node that has just registered; none if it sent no key, or there is no DHT.

    The credential lasts as long as the node's token.

    Args:
        layers: Of the model.
        dht_key: Ed25519 public key in hex.
    """
    operator = operator_key(settings.discovery)
    if operator is None or dht_key is None:
        return None
    credential = issue_credential(
        operator,
        node_id=node_id,
        registration=registration,
        model_id=model_id,
        layers=layers,
        public_key=bytes.fromhex(dht_key),
        expires=time.time() + settings.auth.node_token_ttl,
    )
    return DhtAccess(
        credential=credential.hex(),
        registration=registration,
        operator_key=operator.public.hex(),
        peers=await bootstrap_peers(redis, settings.discovery),
    )
