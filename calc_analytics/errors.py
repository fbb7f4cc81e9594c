"""The one base class of errors that a user may see: the message names what is wrong and what to do.

The docstring of an error is when it is raised. The CLI prints `str(error)` as one line and exits with 1, and a Dagster
run or tick fails with the same line. Any other exception is an internal error.
"""


class CalcAnalyticsError(Exception):
    """Something the user can fix; the message is one line: what, where, and what to do."""

    transient = False
    """Whether the same may succeed when it is tried again."""
