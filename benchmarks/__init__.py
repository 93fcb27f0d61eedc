"""How tracekit compares: with hand-written SQL and with its peers, in one run. `python -m benchmarks --help`."""
