"""Balance, cap, withdrawal."""

import datetime as dt
from typing import Self

from pydantic import BaseModel

from api.schemas.base import amounts_far
from market.ledger import wallet_balance


class Withdrawal(BaseModel):
    """What a user has asked the contract to pay out, and has not got."""

    amount_far: float
    amount_far_exact: str
    ready_at: dt.datetime | None
    """When the contract's delay is over; none if the request was not seen on the chain."""

    @classmethod
    def of(cls, withdrawal: wallet_balance.Withdrawal) -> Self:
        return cls(**amounts_far(amount=withdrawal.amount), ready_at=withdrawal.ready_at)


class CapLowering(BaseModel):
    """A lower cap that the contract carries out after its delay, and that binds here at once."""

    maximum_far: float
    maximum_far_exact: str
    ready_at: dt.datetime

    @classmethod
    def of(cls, lowering: wallet_balance.CapLowering) -> Self:
        return cls(**amounts_far(maximum=lowering.maximum), ready_at=lowering.ready_at)


class SpendingCap(BaseModel):
    """The cap that a user signed for the contract, and how much of it is gone. It does not expire:
    a signature's deadline only says until when it can be handed in."""

    signed_far: float
    signed_far_exact: str
    """All that may ever be debited."""
    spent_far: float
    spent_far_exact: str
    """What ended generations have cost, ever."""
    left_far: float
    left_far_exact: str
    """What may be held beyond what is spent and held."""
    lowering: CapLowering | None

    @classmethod
    def of(cls, cap: wallet_balance.CapUse) -> Self:
        return cls(
            **amounts_far(signed=cap.signed, spent=cap.spent, left=cap.left),
            lowering=None if cap.lowering is None else CapLowering.of(cap.lowering),
        )


class Balance(BaseModel):
    """A user's money. A generation can be asked for if its hold is within ``available`` and within
    what the cap leaves."""

    wallet_address: str
    available_far: float
    available_far_exact: str
    held_far: float
    held_far_exact: str
    """What running generations may cost at most."""
    incoming_far: float
    incoming_far_exact: str
    """Deposits that are on the chain and not confirmed yet."""
    shortfall_far: float
    shortfall_far_exact: str
    """What the contract let out, or took back, after it was spent. The next deposit fills it."""
    withdrawal: Withdrawal | None
    cap: SpendingCap

    @classmethod
    def of(cls, money: wallet_balance.Balance) -> Self:
        return cls(
            wallet_address=money.wallet,
            **amounts_far(
                available=money.available,
                held=money.held,
                incoming=money.incoming,
                shortfall=money.shortfall,
            ),
            withdrawal=None if money.withdrawal is None else Withdrawal.of(money.withdrawal),
            cap=SpendingCap.of(money.cap),
        )
