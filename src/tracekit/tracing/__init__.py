"""The trace of a task: its context across borders, its spans, how they are kept and shipped, and its log lines."""
