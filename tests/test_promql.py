"""PromQL from the catalogue (D6): what is written is what Prometheus reads, and names only what is emitted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.programs import require_program
from tracekit import promql
from tracekit.metrics import ATTEMPTS, HOP_DURATION, HOPS, IN_FLIGHT, LISTENER_STATE, RETRIES, WORKERS
from tracekit.promql import Vector, binary, increase, matches, rate, recorded, select, sum_by

HOPS_READY = select(HOPS, state="ready")

WRITTEN: list[tuple[Vector, str]] = [
    (HOPS_READY, 'tracekit_hops{state="ready"}'),
    (select(HOPS, state=("ready", "running")), 'tracekit_hops{state=~"ready|running"}'),
    (select(HOPS, mode=matches("$mode"), state='a"\\'), 'tracekit_hops{mode=~"$mode",state="a\\"\\\\"}'),
    (recorded("mode:made:sum", frozenset({"mode"})), "mode:made:sum"),
    (recorded("mode:made:sum", frozenset({"mode"}), "1h"), "mode:made:sum offset 1h"),
    (increase(select(RETRIES), "5m"), "increase(tracekit_retries_total[5m])"),
    (
        sum_by(rate(select(ATTEMPTS, outcome="done"), "5m"), "mode") > 0.1,
        'sum by (mode) (rate(tracekit_attempts_total{outcome="done"}[5m])) > 0.1',
    ),
    (promql.once(select(WORKERS)), "max by (mode) (tracekit_workers)"),
    (
        promql.quantile(0.95, HOP_DURATION, "5m", "mode", outcome="done"),
        'histogram_quantile(0.95, sum by (le, mode) (rate(tracekit_hop_duration_seconds_bucket{outcome="done"}[5m])))',
    ),
    (sum_by(select(HOPS)) / (sum_by(select(IN_FLIGHT)) + 1), "sum(tracekit_hops) / (sum(tracekit_hops_in_flight) + 1)"),
    (sum_by(select(HOPS)) - 1 - 2, "sum(tracekit_hops) - 1 - 2"),
    (
        promql.unless(sum_by(select(HOPS), "mode"), sum_by(select(IN_FLIGHT), "mode") > 0, on=("mode",)),
        "sum by (mode) (tracekit_hops) unless on (mode) (sum by (mode) (tracekit_hops_in_flight) > 0)",
    ),
    (
        binary(sum_by(select(IN_FLIGHT), "job"), "*", sum_by(select(LISTENER_STATE), "job"), on=("job",)),
        "sum by (job) (tracekit_hops_in_flight) * on (job) sum by (job) (tracekit_listener_state)",
    ),
    (promql.absent(select(promql.UP, job="tracekit")), 'absent(up{job="tracekit"})'),
]


@pytest.mark.parametrize(("made", "text"), WRITTEN, ids=[text for _, text in WRITTEN])
def test_an_expression_reads_as_prometheus_has_it(made: Vector, text: str) -> None:
    assert str(made) == text


def test_prometheus_takes_what_is_composed(tmp_path: Path) -> None:
    rules = [{"record": f"made:{number}", "expr": made.text} for number, (made, _) in enumerate(WRITTEN)]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "made", "rules": rules}]}))
    done = subprocess.run(
        [require_program("promtool"), "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("compose", "fault"),
    [
        (lambda: select(RETRIES, modus="a"), "tracekit_retries_total has no label 'modus'; it has instance, job, mode"),
        (lambda: select(HOPS, le="1"), "no label 'le'"),
        (lambda: sum_by(select(HOPS), "persona"), "no label 'persona'"),
        (lambda: sum_by(sum_by(select(HOPS), "mode"), "state"), "no label 'state'"),
        (lambda: rate(select(HOPS), "5m"), "is a gauge"),
        (lambda: select(HOP_DURATION), "is a histogram"),
        (lambda: select(HOPS, "sum"), "is a gauge"),
        (lambda: promql.quantile(0.5, HOP_DURATION, "5m", "persona"), "no label 'persona'"),
        (lambda: binary(select(HOPS), "/", select(RETRIES), on=("state",)), "no label 'state'"),
        (lambda: binary(select(HOPS), "and", 1), "and between"),
        (lambda: sum_by(recorded("mode:made:sum", frozenset({"mode"})), "state"), "no label 'state'"),
    ],
)
def test_d6_a_name_that_is_not_emitted_is_refused(compose: Callable[[], object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        compose()
