"""What a provider runs: `far-node` serves a span of a model's layers and pulls its work."""
