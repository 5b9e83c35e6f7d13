"""Pays providers on-chain, in batches. May be killed between any two lines.

::

    closed ──▶ signed ──▶ mined ──▶ confirmed         replaced: into another batch
       sign     │  ▲        │           ▲
                ▼  └────────┘           │ posted to the ledger
          replaced by one    reorg      │ once the block is final
          with higher fees              finality

    taking_back  what was posted, and a deeper reorganization has undone: confirmed ──▶ signed
    collect      what is due, and one transaction that closes it into a batch
    submit       simulate, nonce, sign, persist, send, replace
    reconcile    what became of it: the contract first, then receipts
    finality     wait until it is final, then the ledger follows
    leaving_out  a batch that would revert because of some users, or of the daily ceiling
    awake        an empty batch now and then, so that the contract is not dormant
    pauses       when an operator has to look
    plan         what the next batch would be, for people

A batch's id is the hash of its content, a generation belongs to one batch at a time, and the
contract takes each id once. So whatever was lost on the way (our process, an answer, the
transaction itself), the next run asks the contract and goes on. The one thing that could pay twice
is to put a generation into a second batch while the first can still be mined: see `leaving_out`.
"""

from workers.settlement.task import settle, settle_due

__all__ = ["settle", "settle_due"]
