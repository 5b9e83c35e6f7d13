"""Settings of the API's limits: rates, and sizes of bodies."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, IPvAnyNetwork, field_validator
from pydantic_settings import NoDecode

from market.settings.lists import split


class LimitSettings(BaseModel):
    generations_per_ip: str = "100/hour"
    """Of callers who show neither a good token nor a good key: the specification's figure."""
    generations_per_wallet: str = "600/minute"
    """With all of its API keys. Jobs in flight have a limit of their own."""
    generations_per_key: str = "600/minute"
    """Of an API key that has no limit of its own."""
    new_keys_per_wallet: str = "100/hour"
    """API keys made."""
    unknown_keys_per_ip: str = "600/minute"
    """API keys that are none, revoked or expired; each may cost a look into the database."""
    jobs_in_flight_per_wallet: int = Field(100, ge=1)
    """Jobs of a wallet that have not ended."""
    positions_in_flight_per_wallet: int = Field(2**18, ge=1)
    """KV positions that a wallet's jobs reserve, prompts and answers together: 128 jobs of 2,048. A
    single job may have more."""
    logins_per_ip: str = "100/hour"
    registrations_per_ip: str = "100/hour"
    device_codes_per_ip: str = "60/hour"
    user_codes_per_ip: str = "60/hour"
    """Codes typed in, right or wrong: guessing one of 2.6e10 is hopeless at this rate."""
    device_polls_per_ip: str = "5000/hour"
    probes_per_ip: str = "120/hour"
    """Each moves up to four megabytes."""
    heartbeats_per_node: str = "120/minute"
    """Each writes a row; a node sends two a minute."""
    relay_connections_per_node: str = "120/minute"
    """A node on a bad link connects again and again."""
    receipts_per_wallet: str = "1000/hour"
    """Each reads its batch's usage tree: up to some megabytes."""
    tables_per_wallet: str = "60/hour"
    """Usage and earnings as CSV, which may be long."""
    weights_per_wallet: str = "600/hour"
    """Requests for a model's files, by a wallet's machines, or by one node."""
    weight_files_per_wallet: str = "1200/minute"
    """Ranges of files that the gateway gives out itself: of 32 MiB each as nodes ask for them, so
    that this is more than any line carries."""
    downloads_per_wallet: int = Field(64, ge=1)
    """Such files on their way at once from one process; a node takes six."""
    downloads_per_process: int = Field(256, ge=1)
    """Of all wallets. Each takes an open file and some 200 kB. A wallet gets no more than are still
    free."""
    reads_per_ip: str = "1200/minute"
    """What everybody may read: models, nodes, earnings; kept for ``read_cache`` seconds."""
    bodies_per_ip: str = "1200/minute"
    """Requests with a body and no token, malformed ones too, before the body is read."""
    requests_per_ip: str = "30000/minute"
    """All that is asked with whatever tokens and keys, but the relay's polls: of a house full of
    nodes, or of a server with many users. Only a flood meets it."""
    requests_per_wallet: str = "6000/minute"
    """All that a wallet asks with its token or its API keys, or its machines with theirs; or a node
    with its own."""
    read_cache: float = Field(2, ge=0, le=60)
    """Seconds for which one answer serves all who read the same."""
    read_timeout: float = Field(3, gt=0)
    """Seconds after which Postgres gives a read up."""
    metrics_networks: Annotated[list[IPvAnyNetwork], NoDecode] = [
        IPv4Network("127.0.0.0/8"),
        IPv6Network("::1/128"),
    ]
    """Networks whose callers may read /metrics; as text, separated by commas."""
    readers_per_job: int = 1000
    """Open streams of one job, at one gateway process."""
    readers_per_wallet: int = 2000
    """Open streams, and requests that wait for a whole answer, of one wallet at one process."""
    readers_per_process: int = 4000
    """Of all wallets at one process. Each takes some 50 kB, and what its client has not read yet. A
    wallet gets no more than are still free."""
    max_body_bytes: int = 2**20
    """Of a generation or a bandwidth probe; others have 16 KiB at most."""
    max_transfer_bytes: int = Field(2**28, ge=2**16)
    """Of bodies and frames that are half here, and of answers to nodes that are half taken, in one
    process. Above it, whoever has the most of them loses one."""
    transfer_grace: float = Field(15, gt=0)
    """Seconds that a body may take however short it is, and stand still however long it is."""
    transfer_rate: float = Field(2**14, gt=0)
    """Bytes a second that each transfer has to make beyond that: an eighth of a slow uplink."""
    transfer_seconds: float = Field(120, gt=0)
    """For a whole body, frame or answer, however long it is."""
    max_prompt_chars: int = 200_000
    trusted_proxies: int = Field(0, ge=0, le=16)
    """How many proxies stand before the gateway, each of which adds the address that it saw to
    X-Forwarded-For or Forwarded: that of the outermost counts. 0: the headers are not believed."""
    trust_forwarded_for: bool = False
    """As ``trusted_proxies: 1``."""
    ipv6_site_factor: int = Field(16, ge=1, le=65536)
    """A limit of an address holds for an IPv6 /64, and this many times as much for its /48."""

    @property
    def proxies(self) -> int:
        """Proxies whose word for a caller's address counts."""
        return max(self.trusted_proxies, int(self.trust_forwarded_for))

    @field_validator("metrics_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)
