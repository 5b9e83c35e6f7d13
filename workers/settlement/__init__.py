"""Pays providers on-chain, in batches. May be killed between any two lines.

::

    closed ──▶ signed ──▶ mined ──▶ confirmed         replaced: into another batch
       sign     │  ▲        │           ▲
                ▼  └────────┘           │ posted to the ledger
          replaced by one    reorg      │ once the block is final
          with higher fees              finality

    collect      what is due, and one transaction that closes it into a batch
    submit       simulate, allocate a nonce, sign, persist, send, replace
    reconcile    what became of a signed batch: the contract first, then receipts
    finality     wait until a mined batch is final, then post it to the ledger
    reorg        a confirmed batch that a deeper reorg has undone: back to signed
    exclusions   a batch closed again without the generations that would revert it
    dormancy     an empty batch now and then, so that the contract is not dormant
    pauses       until an operator has looked
    withdrawal_alerts   users who could withdraw what they owe
    preview      what the next batch would be, shown to an operator

A batch's id is the hash of its content, a generation belongs to one batch at a time, and the
contract settles each id once. So whatever was lost on the way (our process, an answer, the
transaction itself), the next run asks the contract and goes on. The one thing that could pay twice
is to put a generation into a second batch while the first can still be mined: see `exclusions`.
"""

from workers.settlement.task import settle, settle_due

__all__ = ["settle", "settle_due"]
