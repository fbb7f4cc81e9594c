"""Facts → health → status, doctor, metrics, alerts and HTTP.

`facts.py` reads, `health.py` and `doctor.py` judge, the others render. Every group of facts has a deadline, so that a
part that hangs is one line of the answer. Nothing here changes data, except the trigger, which is off by default.
"""
