"""A running stack to measure: its network, its users, its nodes."""
