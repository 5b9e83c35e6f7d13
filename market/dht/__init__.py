"""The DHT from the operator's side: his key, nodes' credentials, and what is announced."""
