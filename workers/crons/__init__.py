"""What runs now and then: the sweeper and the outbox, the ledger check, rebalances."""
