"""Settings of discovery: DHT, heartbeats, trusted wallets."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import (
    NoDecode,
)

from market.settings.lists import split

PEER_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d+/p2p/[A-Za-z0-9]+")
"""Multiaddress of a DHT peer. Without the peer id, whoever takes the address would be the peer."""


class DiscoverySettings(BaseModel):
    dht_bootstrap: Annotated[list[str], NoDecode] = []
    """Other peers of the operator's DHT, as multiaddresses with their peer ids; as text, separated
    by commas. Nodes are handed them, too."""
    dht_host: str = "0.0.0.0"
    """Address on which the DHT's peer listens."""
    dht_port: int = Field(31337, ge=1, le=65535)
    dht_announced: Annotated[list[str], NoDecode] = []
    """Multiaddresses, without a peer id, that others reach it by, where it does not see them
    itself: behind NAT, or with a name of its own."""
    dht_identity: Path = Path("dht_identity.key")
    """File with the key that the peer id comes from; made if it is not there."""
    dht_operator_key: SecretStr = SecretStr("")
    """Ed25519 seed, 32 bytes in hex, that signs who may announce and where the platform is. Without
    it there is no DHT."""
    dht_mirror_interval: float = Field(5, gt=0)
    """Seconds between two readings of the DHT."""
    health_check_interval: float = Field(30, gt=0)
    """Seconds between heartbeats of a node."""
    node_ttl: float = Field(120, gt=0)
    """Seconds of silence after which a node is off the routes: four missed heartbeats."""
    row_interval: float = Field(120, ge=0)
    """Seconds of uptime that are gathered in Redis before a node's row in Postgres is written: also
    how long a node beats on after its row was deleted."""
    geoip_database: Path | None = None
    """MaxMind database of cities (.mmdb) that tells where an address is: GeoLite2-City, say."""
    trusted_wallets: list[str] = []
    """Wallets whose nodes may hold the edge: they see prompts, so the operator names them."""
    edge_by_machine_token: bool = False
    """Whether such a wallet's nodes may hold the edge also if they registered by a machine's token,
    which lies on that machine's disk for a year, and not by the wallet's key."""
    admission: Literal["allow_list", "anyone"] = "allow_list"
    """Whose nodes are admitted: those of `allowed_wallets` and `trusted_wallets`, or anyone's.
    Nobody checks yet that a node computes what it should, so strangers are a risk to every text."""
    allowed_wallets: list[str] = []
    """Wallets whose nodes are admitted although they may not hold the edge."""
    cooldown: float = 30
    """Seconds for which a node that failed a generation gets no new one."""
    disputes: int = Field(3, ge=1)
    """Different wallets with which a node is in dispute, until it gets no new generation for its
    cooldown. One alone would let any node take its neighbours from all others."""
    dispute_window: float = Field(600, gt=0)
    """Seconds for which a dispute counts, and a refusal of what a node's keep-alives offered."""

    failed_users: int = Field(3, ge=1)
    """Different users on whose generations a node failed by its own word, without serving one to
    its end between, until each such failure counts as a refusal. One alone could choose by his
    prompts which nodes are paused."""

    @field_validator("dht_bootstrap", "dht_announced", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @field_validator("dht_bootstrap")
    @classmethod
    def _with_peer_ids(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if not PEER_ADDRESS.fullmatch(address):
                raise ValueError(
                    f"{address} is no peer: /dns4/HOST/tcp/PORT/p2p/PEER_ID, as "
                    "`far-mesh discovery --print-peers` shows it"
                )
        return addresses
