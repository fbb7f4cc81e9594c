"""The orchestration layer: each body opens the database, calls one domain function, reports. No SQL here."""
