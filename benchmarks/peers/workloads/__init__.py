"""The workloads: what is measured of each system, and what is compared."""
