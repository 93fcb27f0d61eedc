"""Dashboards as code: what is in `dashboards/*.json`, and the way to a Grafana.

The five dashboards know the metric catalogue and the views of the schema `grafana`, and nothing else of tracekit.
"""

NAMES = ("task", "fleet", "queue", "budget", "people")
"""The dashboards, for those who do not need the SDK that makes them."""
