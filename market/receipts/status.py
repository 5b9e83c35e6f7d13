"""What a job cost, who got it, the proof."""

from enum import StrEnum


class ReceiptStatus(StrEnum):
    FREE = "free"
    """Nothing was charged."""
    CAPTURED = "captured"
    """The user has paid; the providers wait for the release delay."""
    IN_BATCH = "in_batch"
    SETTLED = "settled"
    """The contract has credited the providers, finally."""
