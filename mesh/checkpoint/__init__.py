"""What a checkpoint consists of."""
