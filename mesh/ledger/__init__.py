"""Double-entry ledger: every movement of money is a transaction whose entries sum to zero.

The flow of one generation::

    deposit   chain.clearing  → user.available
    hold      user.available  → user.held
    capture   user.held       → providers' and platform's owed, the rest back to user.available
    release   user.held       → user.available                     (a failure of ours)
    settle    owed            → paid                               (confirmed on-chain)

The database keeps the rules, not this code: a deferred trigger refuses a transaction that does
not sum to zero, triggers refuse UPDATE and DELETE, a CHECK refuses a balance below zero, and a
unique (kind, reference) makes every posting happen once, however often it is tried.
"""

from mesh.ledger.accounts import (
    CHAIN,
    PLATFORM,
    Account,
    available,
    balance,
    clearing,
    held,
    owed,
    paid,
)
from mesh.ledger.postings import capture, deposit, hold, release, settle

__all__ = [
    "CHAIN",
    "PLATFORM",
    "Account",
    "available",
    "balance",
    "capture",
    "clearing",
    "deposit",
    "held",
    "hold",
    "owed",
    "paid",
    "release",
    "settle",
]
