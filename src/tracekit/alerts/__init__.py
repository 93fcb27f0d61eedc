"""Alert rules and the Alertmanager configuration that belongs to them, as code: `tracekit alerts build` writes them."""
