"""Errors of transfers: too slow, too many bytes at once."""

from market.errors import InvalidRequest, Unavailable


class TransferTooSlow(InvalidRequest):
    code = "transfer_too_slow"
    status = 408
    title = "Request timeout"


class TransfersFull(Unavailable):
    code = "transfers_full"
