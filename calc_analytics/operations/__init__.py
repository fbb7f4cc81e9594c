"""What people, load balancers and Prometheus ask: the health report, `status`, `doctor`, metrics, and HTTP over them.

Plain functions that return small values; whoever asks prints them. Every question has its own deadline, so that one
hanging part is one line of the answer. Nothing here changes data, except the trigger, which is off by default.
"""
