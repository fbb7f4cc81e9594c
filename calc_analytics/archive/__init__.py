"""The archive: counted log rows in Parquet files, in a folder or on object storage. No Dagster, no environment.

`writing.py` archives days, `manifest.py` says which files hold a day's rows, `rows.py` turns log rows into Arrow
tables, `store.py` reads and writes files, `checking.py` proves files against manifests and the log, `erasing.py` takes
a publisher out, `place.py` is what they take. Which days are archived, up to which snapshot, is in the database:
`rollup/ledger/archived.py`.
"""
