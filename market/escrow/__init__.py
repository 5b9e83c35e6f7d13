"""The InferenceEscrow contract: read, called, deployed."""
