"""Cron tasks: the job sweeper, the outbox, the ledger check, rebalances."""
