"""Exit statuses of `far-node`, which say whether to start it again unchanged.

0 is an end as it was asked for. Python itself ends with 1 after a crash, which may be worth another
try, and the parser of the command line with 2 at a flag that there is not.
"""

USAGE_ERROR = 2

TEMPORARY_FAILURE = 75
"""EX_TEMPFAIL: nothing has to be changed. Something did not answer, or has forgotten the node."""

CONFIG_ERROR = 78
"""EX_CONFIG: it has said what has to be changed first."""
