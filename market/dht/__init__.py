"""The DHT from the operator's side."""
