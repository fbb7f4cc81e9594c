"""A plugin for `pytest --collect-only -p calc_analytics_tests.marks`: prints each test with its marks, tab by tab."""

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """After all marks are there."""
    for item in session.items:
        print(f"marked\t{item.nodeid}", *sorted({mark.name for mark in item.iter_markers()}), sep="\t")
