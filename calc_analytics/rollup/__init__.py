"""The domain: from log rows to exact statistics. No Dagster, no environment, no clock of its own.

One state row per log holds the PostgreSQL snapshot up to which its rows are counted, for all of its rollups. `refresh`
adds what became visible since, `rebuild` recounts days, `verify` and `audit` prove them. At every commit, for every
rollup and every built day of it:

    target(day) == counted == aggregate(log rows of the day that are visible in the stored snapshot) + deleted
"""
