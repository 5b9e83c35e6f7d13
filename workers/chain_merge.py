"""What a new reading of the chain changes in what is stored of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.chain_logs import Event
from mesh.db import ChainEvent


@dataclass(frozen=True, slots=True)
class Record:
    """An event as it is stored."""

    event: Event
    status: str = "pending"
    reference: str | None = None

    @classmethod
    def of(cls, row: ChainEvent) -> "Record":
        event = Event(
            transaction_hash=row.transaction_hash,
            log_index=row.log_index,
            block_number=row.block_number,
            block_hash=row.block_hash,
            name=row.name,
            arguments=row.arguments,
        )
        return cls(event, row.status, row.reference)

    def row(self, contract: str) -> dict[str, Any]:
        """Its columns."""
        event = self.event
        return {
            "transaction_hash": event.transaction_hash,
            "log_index": event.log_index,
            "contract": contract,
            "block_number": event.block_number,
            "block_hash": event.block_hash,
            "name": event.name,
            "wallet_address": event.wallet,
            "arguments": event.arguments,
            "status": self.status,
            "reference": self.reference,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """What has to happen to what is stored. What stays as it is, is in none of the three."""

    new: list[Event]
    moved: list[tuple[Record, Event]]
    """The same event in another block, or at another place in its own."""
    gone: list[Record]


def merge(records: Sequence[Record], events: Sequence[Event]) -> Changes:
    """Compare what is stored of some blocks with a new reading of them.

    An event of which a transaction has two is moved to that of the same rank: both are equal in
    all that counts.
    """
    stored: dict[object, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.event.place):
        stored.setdefault(record.event.content, []).append(record)
    new: list[Event] = []
    moved: list[tuple[Record, Event]] = []
    for event in sorted(events, key=lambda event: event.place):
        same = stored.get(event.content)
        if not same:
            new.append(event)
            continue
        record = same.pop(0)
        if record.event != event:
            moved.append((record, event))
    return Changes(new, moved, [record for left in stored.values() for record in left])
