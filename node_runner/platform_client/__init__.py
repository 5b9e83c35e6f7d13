"""The node's one client of the platform's HTTP API."""
