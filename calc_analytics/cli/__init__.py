"""`calc-analytics`, the command: one module per family of commands, and what terminals show.

Each command is click's options and the printing; what it prints comes from `rollup/`, `operations/` and `processes/`.
"""
