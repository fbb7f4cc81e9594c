"""The orchestration layer: each body opens the database, calls one domain function and reports its result. No SQL."""
