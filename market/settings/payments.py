"""Settings of payments: chain, signer, settlement."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    NoDecode,
)

from market.settings.deployment import Deployment
from market.settings.lists import split


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
    settle_amount: Decimal = Field(Decimal(1), ge=0)
    """FAR that a user owes for released payments before they are settled; 0 to settle any amount.
    Less is settled once it is `settle_age` old, or its user has asked the contract for so much that
    a withdrawal would take it."""
    settle_age: float = Field(6 * 3600, ge=0)
    """Seconds after which a payment is settled however small it is: with `release_delay` well below
    the contract's withdrawal delay. Each user of a batch costs some 7,000 gas."""
    withdrawal_alert: float = Field(12 * 3600, ge=0)
    """Seconds before a withdrawal can run at which an alert is raised, if its user's payments are
    not settled by then. While settlement is paused the alert comes with the request."""
    platform_fee: Decimal = Field(Decimal("0.05"), ge=0, lt=1, decimal_places=18)
    """The platform's part of each cost."""
    rpc_urls: Annotated[list[str], NoDecode, Field(min_length=1)] = ["http://127.0.0.1:8545"]
    """JSON-RPC endpoints of the chain, the preferred first; as text, separated by commas. Where
    there are several, two have to say the same before it moves money."""
    rpc_max_age: float = Field(60, ge=0)
    """Seconds since an endpoint's newest block after which it is passed over; 0 for no limit, on a
    development chain that makes a block only for a transaction."""
    rpc_max_lag: int = Field(20, ge=0)
    """Blocks that an endpoint may be behind or ahead of the median of all."""
    rpc_timeout: float = Field(10, gt=0)
    """Seconds that one request may take. After half of them it is sent a second time."""
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
    index_max_age: float = Field(6 * 3600, ge=0)
    """Seconds since the last indexed block after which nothing is held for new jobs, since who has
    withdrawn meanwhile could spend it again: about a quarter of the contract's withdrawal delay.
    0 for no limit."""
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
