"""Accounts, postings, and what users allow to be spent. Triggers keep the rules."""

import datetime as dt
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    ForeignKey,
    Identity,
    Index,
    SmallInteger,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from market.db import AMOUNT, INSTANT, WALLET, Base


class LedgerAccount(Base):
    """Where money stands: an owner (a wallet, ``platform`` or ``chain``) and a kind.

    Its balance is kept by triggers, always the sum of its entries, and is read from the view
    ``ledger_balances``.
    """

    __tablename__ = "ledger_accounts"
    __table_args__ = (UniqueConstraint("owner", "kind", name="uq_ledger_accounts_owner_kind"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    owner: Mapped[str] = mapped_column(WALLET)
    kind: Mapped[str] = mapped_column(String(20))


class BalanceShard(Base):
    """A balance, or a shard of one: accounts that everybody pays into have several rows, so that
    transactions do not wait for each other. Only triggers write here.

    ``may_be_negative``: the chain's clearing account, which mirrors what the escrow contract holds
    for everyone else, and the platform's shortfall.
    """

    __tablename__ = "ledger_parts"
    __table_args__ = (
        CheckConstraint("balance >= 0 OR may_be_negative", name="check_balance_not_negative"),
    )

    account_id: Mapped[int] = mapped_column(ForeignKey("ledger_accounts.id"), primary_key=True)
    part: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    balance: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    may_be_negative: Mapped[bool]


class LedgerTransaction(Base):
    """A set of entries that sums to zero. (``kind``, ``reference``) can be posted once.

    ``occurrence`` counts the times that an event came onto the chain: after a reorg it may
    come again, and the database takes the next one only when the last was reversed.
    """

    __tablename__ = "ledger_transactions"
    __table_args__ = (
        UniqueConstraint("kind", "reference", "occurrence", name="uq_ledger_transactions_ref"),
        # A hold ends once.
        Index(
            "uq_ledger_transactions_end",
            "reference",
            unique=True,
            postgresql_where=text("kind IN ('capture', 'release')"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    reference: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    occurrence: Mapped[int] = mapped_column(SmallInteger, server_default="0")


class LedgerEntry(Base):
    """One amount on one account. Append-only: triggers refuse UPDATE, DELETE and TRUNCATE.

    A trigger looks for transaction and account: foreign keys would lock their rows for each entry,
    and all captures share the platform's account.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index(
            "idx_ledger_entries_account",
            "account_id",
            "posted_at",
            postgresql_include=["amount"],
        ),
    )

    transaction_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    account_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    amount: Mapped[Decimal] = mapped_column(AMOUNT)
    posted_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())


class SpendingCap(Base):
    """What a wallet's owner has set at the contract: how much may be debited, ever, and what is to
    be paid out. No row: nothing may be debited.

    ``committed``: all that was captured from the wallet, ever, and what is held now. ``signed``:
    the cap; a hold has to stay within it. ``maximum``: the same, or what was committed when the
    cap was lowered, if that was more; the database refuses to commit more. ``withdrawal``: what
    the owner has asked the contract for; a hold has to leave that much.

    Whatever moves a wallet's money locks this row first, so that it happens in one order.
    """

    __tablename__ = "spending_caps"
    __table_args__ = (
        CheckConstraint(
            "0 <= committed AND committed <= maximum AND signed <= maximum",
            name="check_within_spending_cap",
        ),
    )

    wallet: Mapped[str] = mapped_column(WALLET, primary_key=True)
    signed: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    maximum: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    committed: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    withdrawal: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")


class KeySpending(Base):
    """What the jobs that an API key asked for on one UTC day have cost, and may cost as long as
    they run, in FAR: the day's part of :attr:`SpendingCap.committed`.

    Written under the wallet's lock, as all that moves its money.
    """

    __tablename__ = "key_spending"
    __table_args__ = (CheckConstraint("committed >= 0", name="check_key_spending_not_negative"),)

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.key_id"), primary_key=True)
    day: Mapped[dt.date] = mapped_column(Date, primary_key=True)
    committed: Mapped[Decimal] = mapped_column(AMOUNT)
