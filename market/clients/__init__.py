"""The clients of other machines, each opened in one place, where it gets its time limits."""
