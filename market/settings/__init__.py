"""All settings, each with its reason and unit.

A value comes from, in this order: the environment (``FAR_PAYMENTS__RELEASE_DELAY=60``), the YAML
file that ``FAR_CONFIG`` names (default ``config/far_mesh.yaml``), the default below.
"""

import os
import re
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from market.settings.deployment import Deployment

PEER_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d+/p2p/[A-Za-z0-9]+")
"""Multiaddress of a DHT peer. Without the peer id, whoever takes the address would be the peer."""


def split(value: object) -> object:
    """A list that was written as text, with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class ModelSettings(BaseModel):
    """A model that the mesh serves."""

    id: str
    path: str | None = None
    """Local folder or hub id of the checkpoint; the id itself where not given."""
    name: str | None = None
    min_nodes: int = Field(1, ge=1)
    payment_per_token: Decimal = Field(ge=0, max_digits=38, decimal_places=18)
    """FAR for each generated token."""
    s3: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]{2,62}(/.*)?$")
    """`BUCKET/PREFIX` where `far-mesh models publish` put the weights: nodes get signed URLs."""
    weights_url: str | None = Field(None, pattern=r"^https?://")
    """URL under which the published folder lies, where it is open to everybody."""


class WeightSettings(BaseModel):
    url_ttl: int = Field(3600, ge=60, le=7 * 24 * 3600)
    """Seconds for which a signed URL of weights is good; a node that needs longer asks again. S3
    allows a week."""
    manifest_ttl: float = Field(60, ge=0)
    """Seconds for which a model's manifest is kept before it is read again."""


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
    cooldown: float = 30
    """Seconds for which a node that failed a generation gets no new one."""

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


class PlacementSettings(BaseModel):
    """Which layers nodes serve that leave it to the platform."""

    enabled: bool = True
    """Begin moves of nodes; one that is under way goes on. Without it nodes still get a span when
    they register."""
    interval: int = Field(30, ge=1)
    """Seconds between looks whether a move pays: the heartbeats' interval, since nothing new is
    known in between."""
    threshold: float = Field(0.1, ge=0.01)
    """Share of the throughput that a move has to gain: what measured speeds wobble by, at least."""
    horizon: float = Field(3600, gt=0)
    """Seconds within which a move has to win back what loading costs: as long as nodes stay."""
    positions: int = Field(16384, ge=0)
    """KV room that each layer is to have, over all generations: eight of 2,048 positions."""
    half_life: float = Field(300, gt=0)
    """Seconds after which a measurement counts half: ten heartbeats, so that one slow minute is no
    reason to move."""
    pause: float = Field(300, ge=0)
    """Seconds between the end of a move and the next: until what it changed has been measured."""
    move_limit: float = Field(1800, gt=0)
    """Seconds that the nodes of a move get to load: 70 GB from a hub, by 40 MB a second."""
    retry: float = Field(3600, ge=0)
    """Seconds for which nodes stay where they are whose move came to nothing."""
    loading_limit: float = Field(900, gt=0)
    """Seconds for which a node that has registered and loads counts as serving its span."""


class PaymentsSettings(BaseModel):
    deployment: Path | None = None
    """File that `far-mesh contracts deploy` wrote. Where it is set, `escrow_contract`, `chain_id`
    and `first_block` come from it unless they are set themselves."""
    escrow_contract: str | None = None
    chain_id: int | None = Field(None, ge=1)
    """EIP-155 id of the escrow's chain. An RPC endpoint of another chain is passed over; where
    this is not set, endpoints are not asked."""
    release_delay: float = Field(3600, ge=0)
    """Seconds that a captured payment waits before it may be settled."""
    platform_fee: Decimal = Field(Decimal("0.05"), ge=0, lt=1, decimal_places=18)
    """The platform's part of each cost."""
    rpc_urls: Annotated[list[str], NoDecode, Field(min_length=1)] = ["http://127.0.0.1:8545"]
    """JSON-RPC endpoints of the chain, the preferred first; as text, separated by commas."""
    rpc_max_age: float = Field(60, ge=0)
    """Seconds since an endpoint's newest block after which it is passed over; 0 for no limit, on a
    development chain that makes a block only for a transaction."""
    rpc_max_lag: int = Field(20, ge=0)
    """Blocks that an endpoint may be behind the best one."""
    rpc_timeout: float = Field(10, gt=0)
    """Seconds that one request may take."""
    signer: Literal["keystore", "kms"] = "keystore"
    """Where the key of the account that settles is."""
    operator_keyfile: Path | None = None
    """Encrypted keystore (Web3 Secret Storage) of the account that settles."""
    operator_password: SecretStr = SecretStr("")
    kms_key_id: str | None = None
    """Id, ARN or alias of an AWS KMS key of the spec ECC_SECG_P256K1."""
    kms_region: str | None = None
    first_block: int = 0
    """Block in which the escrow was deployed: deposits are read from there on."""
    confirmations: int = Field(15, ge=0)
    """Blocks on top of an event or receipt before it counts: about 7 s on BSC."""
    finalized_tag: bool = True
    """Take the chain's own finalized block where it has one, instead of `confirmations`."""
    settlement_interval: int = Field(600, ge=1)
    """Seconds between settlements."""
    deposit_interval: int = Field(10, ge=1)
    """Seconds between looks at the chain for deposits."""
    check_interval: int = Field(900, ge=1)
    """Seconds between checks of the ledger, which read all of it."""
    confirmation_wait: float = 120
    """Seconds one settlement run waits for its transaction; the next run goes on from there."""
    max_sessions_per_batch: int = Field(10_000, ge=1, le=30_000)
    """Bounds what is read and hashed for one batch. Postgres takes 32,767 arguments at once."""
    max_lines_per_batch: int = Field(1000, ge=2)
    """Users and providers of one batch: its gas grows with them, by 7,000 to 30,000 each."""
    max_fee_gwei: Decimal = Field(Decimal(20), gt=0)
    """Ceiling of what one unit of gas may cost, however long a transaction is stuck."""
    stuck_after: float = Field(60, ge=0)
    """Seconds after which a transaction that is not mined is replaced by one with higher fees."""
    min_gas_money: Decimal = Field(Decimal("0.05"), ge=0)
    """Coins of the chain (BNB on BSC) below which settlement pauses: some fifty batches."""
    retry_left_out: float = Field(3600, ge=0)
    """Seconds after which generations are settled again that a batch had to leave out."""

    @field_validator("rpc_urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @model_validator(mode="after")
    def _read_deployment(self) -> Self:
        if self.deployment is not None:
            deployment = Deployment.read(self.deployment)
            if "escrow_contract" not in self.model_fields_set:
                self.escrow_contract = deployment.escrow
            if "chain_id" not in self.model_fields_set:
                self.chain_id = deployment.chain_id
            if "first_block" not in self.model_fields_set:
                self.first_block = deployment.block
        return self


class AuthSettings(BaseModel):
    jwt_secret: SecretStr = SecretStr("")
    domain: str = "localhost"
    """EIP-4361 domain that a login message must name."""
    token_ttl: int = 24 * 3600
    node_token_ttl: int = 30 * 24 * 3600
    nonce_ttl: int = 300
    machine_token_ttl: int = 365 * 24 * 3600
    """Long, since the wallet can take a machine's token back at any time."""
    device_code_ttl: int = 600
    """Seconds that the owner of a machine has to let it in."""
    device_poll_interval: float = Field(5, gt=0)
    """Seconds that a machine waits between two looks whether it was let in."""


class LimitSettings(BaseModel):
    generations_per_ip: str = "100/hour"
    generations_per_wallet: str = "1000/hour"
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
    max_body_bytes: int = 2**20
    max_prompt_chars: int = 200_000
    trust_forwarded_for: bool = False
    """Take the caller's address from X-Forwarded-For: only behind a proxy that sets it."""


class RelaySettings(BaseModel):
    messages_per_second: float = Field(2000, gt=0)
    """Of one node, above which it is slowed down: ten times what a busy GPU sends."""
    bytes_per_second: float = Field(64 * 2**20, gt=0)
    """Of one node, above which it is slowed down: half a gigabit."""
    idle: float = Field(15, gt=0)
    """Seconds without a pulse, or a whole piece of a long frame, after which a connection is half
    open, and closed."""
    max_connections: int = Field(2000, ge=1)
    """WebSockets, and long polls under way, of all nodes at one process: each holds a connection to
    Redis. Above it nodes go elsewhere."""
    max_inbox_bytes: int = Field(2**30, ge=2**20)
    """Unread messages of one node that Redis keeps. Then they are dropped, and their generations
    routed anew: a node that does not read may not fill Redis."""


class GenerationSettings(BaseModel):
    prompt_key: SecretStr = SecretStr("")
    """AES-256 key, base64, under which prompts rest in Postgres until their job ends."""
    lease: float = 6.0
    """Seconds a supervisor's lease lasts; a dead worker's job is free after that."""
    sweep_interval: int = 2
    """Seconds between looks for jobs whose lease has run out."""
    stall: float = 10.0
    """Seconds without a new token after which a route's nodes are asked whether they live."""
    ping: float = 5.0
    """Seconds they have to answer: longer than any one forward, between two of which they do."""
    max_failures: int = 4
    """Routes that may fail one generation before it fails itself."""
    deadline: float = Field(900.0, gt=0, le=3600)
    """Seconds after which a generation ends in failure, whatever happens. Until then a job waits
    for nodes that cover its layers and have room for it."""
    stream_ttl: int = 3600
    """Seconds for which a finished generation's tokens can be read."""
    supervisors_per_worker: int = 200


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="FAR_", env_nested_delimiter="__", extra="ignore", validate_default=True
    )

    database_url: str = "postgresql+asyncpg:///far_mesh"
    redis_url: str = "redis://127.0.0.1:6379/0"
    public_url: str = "http://127.0.0.1:8000"
    metrics_port: int = 0
    """Port on which a worker serves its metrics; 0 for none. The API has /metrics."""
    log_json: bool = True

    models: list[ModelSettings] = []
    weights: WeightSettings = WeightSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    payments: PaymentsSettings = PaymentsSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    relay: RelaySettings = RelaySettings()
    generation: GenerationSettings = GenerationSettings()
    placement: PlacementSettings = PlacementSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        yaml = YamlConfigSettingsSource(
            settings_cls, yaml_file=os.environ.get("FAR_CONFIG", "config/far_mesh.yaml")
        )
        return (init_settings, env_settings, yaml)


@lru_cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
