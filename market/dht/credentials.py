"""What a node needs to announce itself in the DHT, handed out when it has proved its wallet."""

import time

from pydantic import BaseModel

from api.http.services import Services
from market.dht import directory
from mesh.dht.records import issue_credential
from mesh.dht.signing_keys import SigningKey


class DhtAccess(BaseModel):
    credential: str
    """In hex: the operator's word that the node's key speaks for it."""
    registration: int
    """Which of the node's registrations it is for."""
    operator_key: str
    """In hex: the public half of the key that signed it."""
    peers: list[str]
    """Multiaddresses to join by."""


def operator_key(services: Services) -> SigningKey | None:
    """The key that the settings name; none where there is no DHT."""
    seed = services.settings.discovery.dht_operator_key.get_secret_value()
    return SigningKey.from_hex(seed) if seed else None


async def peers(services: Services) -> list[str]:
    """Multiaddresses of the operator's DHT peers: those of the settings, and those that run."""
    known = await directory.peers(services.redis)
    return sorted({*services.settings.discovery.dht_bootstrap, *known})


async def dht_access(
    services: Services, *, node_id: str, registration: int, model_id: str, dht_key: str | None
) -> DhtAccess | None:
    """For a node that has just registered; none if it sent no key, or there is no DHT.

    The credential lasts as long as the node's token.
    """
    operator = operator_key(services)
    if operator is None or dht_key is None:
        return None
    credential = issue_credential(
        operator,
        node_id=node_id,
        registration=registration,
        model_id=model_id,
        layers=services.catalog.get(model_id).layers,
        public_key=bytes.fromhex(dht_key),
        expires=time.time() + services.settings.auth.node_token_ttl,
    )
    return DhtAccess(
        credential=credential.hex(),
        registration=registration,
        operator_key=operator.public.hex(),
        peers=await peers(services),
    )
