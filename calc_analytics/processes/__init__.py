"""What runs for long: the supervisor of `up`, the demo, and the simulated API that writes logs."""
