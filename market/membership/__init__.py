"""Registration, heartbeats and revocation of nodes."""
