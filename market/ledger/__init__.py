"""Double-entry ledger: every movement of money is a transaction whose entries sum to zero.

The flow of one generation::

    deposit   chain.clearing  → user.available
    hold      user.available  → user.held
    capture   user.held       → providers' and platform's owed, the rest back to user.available
    release   user.held       → user.available                     (nothing was delivered)
    settle    owed            → paid                               (confirmed on-chain)

The way out::

    request_withdrawal  user.available   → user.withdrawing
    cancel_withdrawal   user.withdrawing → user.available
    complete_withdrawal user.withdrawing → chain.clearing

A job that an API key asked for counts against the key's limits, in the same transactions.

Each wallet has a spending cap that its owner signed: a hold commits to it, a release and what a
capture leaves give it back. ``reverse`` undoes a posting whose event a reorg has undone.

The database enforces the rules, not this code: triggers refuse a statement whose entries do not sum
to zero, and every UPDATE and DELETE; CHECKs refuse a balance below zero and a cap exceeded; and a
unique (kind, reference) makes every posting happen once, however often it is tried.
"""

from market.ledger.accounts import (
    BALANCES,
    CHAIN,
    PLATFORM,
    Account,
    available,
    balance,
    balances_at,
    balances_of,
    clearing,
    held,
    owed,
    paid,
    shortfall,
    withdrawing,
)
from market.ledger.key_spending import KeyDay, check_key
from market.ledger.postings import capture, check_available, deposit, hold, release, settle
from market.ledger.reversals import reverse
from market.ledger.spending_caps import lock_wallet_soon, lower_cap, raise_cap
from market.ledger.withdrawals import cancel_withdrawal, complete_withdrawal, request_withdrawal

__all__ = [
    "BALANCES",
    "CHAIN",
    "PLATFORM",
    "Account",
    "KeyDay",
    "available",
    "balance",
    "balances_at",
    "balances_of",
    "cancel_withdrawal",
    "capture",
    "check_available",
    "check_key",
    "clearing",
    "complete_withdrawal",
    "deposit",
    "held",
    "hold",
    "lock_wallet_soon",
    "lower_cap",
    "owed",
    "paid",
    "raise_cap",
    "release",
    "request_withdrawal",
    "reverse",
    "settle",
    "shortfall",
    "withdrawing",
]
