"""What runs now and then, under a lock: the sweeper, the ledger check, rebalances."""
