"""Jobs: generations from their submission to their outcome."""
