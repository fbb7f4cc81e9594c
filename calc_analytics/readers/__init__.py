"""What people read: the summary of publishers, and pictures. No Dagster, no environment; SQL is the contract's
(`database/contract.py`) wherever that has an answer.
"""
