"""The command `calc-analytics`: one module per family of commands, and what is printed.

A command parses its options, opens the database (`opening.py`), calls one function of `rollup/`, `operations/` or
`processes/`, and prints its report. Nothing is counted or judged here.
"""
