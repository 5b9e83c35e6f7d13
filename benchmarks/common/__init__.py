"""What all benchmarks print, write and time alike."""
