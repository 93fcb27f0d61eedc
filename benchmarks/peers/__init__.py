"""Other queues on PostgreSQL, each in an environment of its own with the versions of `versions.toml`."""
