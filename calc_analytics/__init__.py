"""Exact, near-real-time daily statistics from a PostgreSQL log table, orchestrated by Dagster."""

__version__ = "0.2.0"
