"""The generation is over; the lease is lost."""


class LeaseLost(Exception):
    """Another supervisor has taken the generation over."""
