"""The domain: from log rows to exact statistics. No Dagster, no environment, no clock of its own.

One state row per rollup holds the PostgreSQL snapshot up to which logs are counted. `refresh` adds what became
visible since, `rebuild` recounts a day, `verify` proves them. At every commit, for every built day:

    stats(day) == aggregate(logs of that day that are visible in the stored snapshot)

where logs that were deleted after they were counted stay counted (`retention`, `seals`).

The modules are imported when they are first used (`from calc_analytics import rollup`, then `rollup.verify.verify(…)`),
so that Dagster loads the code location without SQLAlchemy and a driver.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calc_analytics.rollup import (
        declaration,
        figures,
        follow,
        install,
        rebuild,
        refresh,
        reports,
        retention,
        verify,
    )

__all__ = ["declaration", "figures", "follow", "install", "rebuild", "refresh", "reports", "retention", "verify"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
