"""/v1: OpenAI's API, for whatever client speaks it."""
