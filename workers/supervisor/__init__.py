"""One generation, from its lease to its completion."""
