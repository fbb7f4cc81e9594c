"""The one base class of errors that a user may see: the message says what is wrong and what to do.

Each error's docstring tells when it is raised; the CLI prints `str(error)` as one line and exits with 1, and a
Dagster run or tick fails with the same line. Anything else that reaches the user is a bug.
"""


class CalcAnalyticsError(Exception):
    """Something the user can fix; the message is one line: what, where, and what to do."""

    transient = False
    """Whether the same may succeed when it is tried again."""
