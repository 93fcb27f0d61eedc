"""The two files of the bundle, as text: rules for Prometheus, and a configuration of Alertmanager."""

from __future__ import annotations

from typing import Any

import yaml

from tracekit.alerts.catalogue import ALERTS, GROUPS
from tracekit.alerts.recording import RECORDINGS
from tracekit.alerts.routing import configuration
from tracekit.alerts.rule import Bases

RULES = "tracekit.rules.yaml"
ALERTMANAGER = "alertmanager.yaml"

_RULES_HEAD = """\
# Recording and alerting rules for Prometheus 2.42 and later. Made by `tracekit alerts build`; do not edit.
# Each alert has a runbook in docs/runbooks.md.
"""

_ALERTMANAGER_HEAD = """\
# An example for Alertmanager 0.25 and later. Made by `tracekit alerts build`; copy it, then change the copy.
#
# People are told through ntfy here. Mail instead:
#   receivers:
#     - name: people
#       email_configs:
#         - to: rob@example.org
#           from: alertmanager@example.org
#           smarthost: smtp.example.org:587
#           auth_username: alertmanager@example.org
#           auth_password_file: /etc/alertmanager/secrets/smtp-password
#
# tracekit's token: tracekit token create --surface alertmanager --principal system --origin observer
"""


def rules(bases: Bases) -> dict[str, Any]:
    """The rule file's content."""
    recorded = [{"record": one.name, "expr": one.expression.text} for one in RECORDINGS]
    alerting = [{"name": one.name, "rules": [alert.rule(bases) for alert in one.alerts]} for one in GROUPS]
    return {"groups": [{"name": "tracekit.recording", "rules": recorded}, *alerting]}


def files(bases: Bases) -> dict[str, str]:
    """Each file's name and text."""
    return {
        RULES: _RULES_HEAD + _yaml(rules(bases)),
        ALERTMANAGER: _ALERTMANAGER_HEAD + _yaml(configuration(ALERTS)),
    }


class _Plain(yaml.SafeDumper):
    """Writes what stands in two places twice: an alias would have to be looked up by whoever reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=10_000)
