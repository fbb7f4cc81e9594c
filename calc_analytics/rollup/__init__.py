"""The domain: from log rows to exact statistics. No Dagster, no environment, no clock of its own.

One state row per rollup holds the PostgreSQL snapshot up to which logs are counted. `refresh` adds what became
visible since, `rebuild` recounts a day, `verify` proves them. At every commit, for every built day:

    stats(day) == aggregate(logs of that day that are visible in the stored snapshot)
"""
