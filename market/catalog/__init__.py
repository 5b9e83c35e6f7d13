"""Models on offer, and their published weights."""
