"""How far the clocks of two machines may be apart, where one checks a time that another wrote."""

CLOCK_SKEW = 10.0
"""Seconds by which whatever expires is still accepted, and whatever begins is accepted before. NTP
keeps clocks within less; a machine that just started, or a virtual one that was paused, is off by
some seconds."""
