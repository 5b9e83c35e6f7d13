"""The DHT discovery service: a peer that keeps announcements of nodes, mirrored into Redis."""
