"""Errors of receipts: not ready yet."""

from mesh.errors import MeshError


class ReceiptNotReady(MeshError):
    code = "receipt_not_ready"
    status = 409
    title = "Receipt not ready"
