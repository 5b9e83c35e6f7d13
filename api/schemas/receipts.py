"""Receipt, batch, usage line."""

import datetime as dt
from decimal import Decimal
from typing import Self

from pydantic import BaseModel

from api.schemas.base import as_float
from api.schemas.jobs import ContributionView
from market.money import format_exact
from market.receipts import receipt
from market.receipts.receipt import ReceiptStatus


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

    @classmethod
    def of(cls, proven: receipt.ProvenLine) -> Self:
        line = proven.line
        return cls(
            request_id="0x" + line.request_id.hex(),
            user=line.user,
            provider=line.provider,
            tokens=line.tokens,
            amount=str(line.amount),
            proof=["0x" + node.hex() for node in proven.proof],
        )


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

    @classmethod
    def of(cls, batch: receipt.ReceiptBatch) -> Self:
        return cls(
            batch_id=batch.batch_id,
            contract=batch.contract,
            transaction_hash=batch.transaction_hash,
            block_number=batch.block_number,
            usage_root=batch.usage_root,
            lines=[UsageLine.of(line) for line in batch.lines],
        )


class Receipt(BaseModel):
    """What a generation cost and who got it. A provider sees his own part, and no cost."""

    request_id: str
    status: ReceiptStatus
    model_id: str
    user_wallet: str
    completed_at: dt.datetime
    prompt_tokens: int
    cached_prompt_tokens: int
    tokens_generated: int
    price_per_token_far_exact: str
    price_per_prompt_token_far_exact: str
    price_per_cached_prompt_token_far_exact: str
    cost_far: float | None
    cost_far_exact: str | None
    prompt_cost_far_exact: str | None
    """The prompt's part of the cost."""
    platform_fee_far_exact: str | None
    served: list[ContributionView]
    batch: ReceiptBatch | None

    @classmethod
    def of(cls, given: receipt.Receipt) -> Self:
        return cls(
            request_id=given.request_id,
            status=given.status,
            model_id=given.model_id,
            user_wallet=given.user_wallet,
            completed_at=given.completed_at,
            prompt_tokens=given.prompt_tokens,
            cached_prompt_tokens=given.cached_prompt_tokens,
            tokens_generated=given.tokens_generated,
            price_per_token_far_exact=format_exact(given.prices.token),
            price_per_prompt_token_far_exact=format_exact(given.prices.prompt_token),
            price_per_cached_prompt_token_far_exact=format_exact(given.prices.cached_prompt_token),
            cost_far=None if given.cost is None else as_float(given.cost),
            cost_far_exact=_exact(given.cost),
            prompt_cost_far_exact=_exact(given.prompt_cost),
            platform_fee_far_exact=_exact(given.fee),
            served=[ContributionView.of(part) for part in given.served],
            batch=None if given.batch is None else ReceiptBatch.of(given.batch),
        )


def _exact(amount: Decimal | None) -> str | None:
    return None if amount is None else format_exact(amount)
