"""Receipt, batch, usage line."""

import datetime as dt

from pydantic import (
    BaseModel,
)

from api.schemas.jobs import ContributionView
from market.receipts.status import ReceiptStatus


class UsageLine(BaseModel):
    """One line of a batch, as the contract's ``verifyUsage`` takes it, and its proof."""

    request_id: str
    """32 bytes as hex: the generation as the chain knows it."""
    user: str
    provider: str
    """The fee's recipient for the line of the platform's fee."""
    tokens: int
    amount: str
    """Base units of FAR."""
    proof: list[str]
    """32 bytes each, as hex, from the line's sibling up."""


class ReceiptBatch(BaseModel):
    """The on-chain transaction that paid a generation, with many others."""

    batch_id: str
    contract: str | None
    transaction_hash: str | None
    """None until it is mined."""
    block_number: int | None
    usage_root: str | None
    """What the contract keeps of the batch's lines; none on a contract that kept nothing."""
    lines: list[UsageLine]


class Receipt(BaseModel):
    """What a generation cost and who got it. A provider sees his own part, and no cost."""

    request_id: str
    status: ReceiptStatus
    model_id: str
    user_wallet: str
    completed_at: dt.datetime
    prompt_tokens: int
    tokens_generated: int
    cost_far: float | None
    cost_far_exact: str | None
    platform_fee_far_exact: str | None
    served: list[ContributionView]
    batch: ReceiptBatch | None
