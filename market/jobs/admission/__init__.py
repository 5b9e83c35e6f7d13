"""Whether a new job may start, and when: jobs in flight, capacity, measured throughput, turns."""
