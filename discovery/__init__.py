"""The DHT discovery service."""
