"""What an answer has to follow, as OpenAI's clients ask for it: JSON, and calls of tools."""
