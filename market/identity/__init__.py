"""Who calls: wallets that log in, machines that they let in, nodes; and their tokens."""
