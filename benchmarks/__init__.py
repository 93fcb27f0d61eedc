"""What tracekit costs, as ratios against hand-written SQL in the same run. `python -m benchmarks --help`."""
