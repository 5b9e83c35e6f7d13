"""What an operator has to look at, and pauses until he has."""
