"""The InferenceEscrow contract: reads, calls, events, deployment."""
