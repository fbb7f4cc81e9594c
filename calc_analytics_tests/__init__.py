"""Tests in three rings: unit (no I/O), integration (a real PostgreSQL), acceptance (real processes and browser)."""
