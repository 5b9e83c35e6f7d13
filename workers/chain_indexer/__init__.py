"""The escrow's events, counted into the ledger."""
