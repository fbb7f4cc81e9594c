"""Dagster's skin over the domain: each body opens the database, calls one domain function, reports. No SQL here."""
