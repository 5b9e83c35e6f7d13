"""Output, timing and the description of the machine, shared by all benchmarks."""
