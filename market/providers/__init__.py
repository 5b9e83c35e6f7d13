"""What providers are shown: their earnings, and the state of their nodes."""
