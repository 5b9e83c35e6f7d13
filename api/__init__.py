"""The gateway: stateless, and the only part that the internet talks to."""
