"""The comparison: this project and its alternatives, with the same rows on one server; see docs/comparison.md.

One module per family of alternatives, `rows.py` for the rows and the reference that each system is compared with, one
module per workload, `tables.py` and `picture.py` for what is printed, `__main__.py` for the command.
"""
