"""Whose rows are erased: columns of the log with a value each, such as `publisher_id`.

A rollup that has all of them among its keys holds rows of theirs; any other holds their part in sums with others'.
"""

from collections.abc import Mapping
from datetime import date

Keys = Mapping[str, int]


def describe_keys(keys: Keys) -> str:
    """'publisher_id 7'."""
    return ", ".join(f"{name} {value}" for name, value in keys.items())


def matches(keys: Keys, columns: Mapping[str, str] | None = None) -> str:
    """SQL: the row is one of the keys'; parameters of `parameters`. `columns`: other names of the columns, if any."""
    return " and ".join(f"{(columns or {}).get(name, name)} = :key_{name}" for name in keys)


def parameters(keys: Keys) -> dict[str, int]:
    """The parameters of `matches`."""
    return {f"key_{name}": value for name, value in keys.items()}


def day_name(day: date | None) -> str:
    """The day for people and for the journal."""
    return "no day" if day is None else str(day)
