"""Indexes the escrow's events: confirmed ones are posted to the ledger."""
