"""Who calls: wallets, machines, nodes."""
