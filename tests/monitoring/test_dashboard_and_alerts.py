"""Dashboard and alerts, looked at by the tools that will load them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.prometheus import programs
from pipeline.distributed.metrics import LABELS, METRICS

INFRA = Path(__file__).parents[2] / "infra"
MONITORING = INFRA / "monitoring"
RULES = MONITORING / "prometheus/rules.yaml"
DASHBOARD = json.loads((MONITORING / "grafana/dec-pipeline.json").read_text("utf-8"))
EXPORTED = {
    f"ray_{metric.name}" + ("_total" if metric.kind == "counter" else ""): metric
    for metric in METRICS.values()
}


def promtool(*words: str | Path) -> None:
    result = subprocess.run([programs() / "promtool", *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_loads_the_rules() -> None:
    promtool("check", "rules", RULES)


def test_prometheus_loads_the_example_config() -> None:
    promtool("check", "config", MONITORING / "prometheus/prometheus.yaml")


def test_each_alert_fires_and_keeps_quiet() -> None:
    """Both by promtool; here only that no alert was forgotten."""
    promtool("test", "rules", Path(__file__).with_name("alerts.yaml"))


def test_each_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
    looks = [look for test in tests for look in test["alert_rule_test"]]
    for fires in (True, False):
        tested = {look["alertname"] for look in looks if bool(look["exp_alerts"]) is fires}
        assert tested == set(alerts())


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_each_alert_says_what_to_do() -> None:
    runbook = guide().partition("## Alerts")[2]
    for name, alert in alerts().items():
        assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
        assert alert["annotations"]["runbook_url"] == "infra/guides/monitoring.md#alerts"
        assert f"| `{name}` |" in runbook.partition("## ")[0]


def test_the_guide_lists_every_metric() -> None:
    lines = re.findall(r"^\| `(ray_dec_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", guide(), re.M)
    assert len(lines) == len(METRICS)
    for name, kind, labels, meaning in lines:
        metric = EXPORTED[name]
        assert (kind, meaning) == (metric.kind, metric.meaning)
        assert tuple(re.findall(r"`(\w+)`", labels)) == metric.labels


def guide() -> str:
    return (INFRA / "guides" / "monitoring.md").read_text("utf-8")


def queries() -> Iterator[tuple[str, str]]:
    """Panel and expression."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_queries_ask_for_what_is_exported() -> None:
    asked = [(f"panel {title}", expression) for title, expression in queries()]
    asked += [(f"alert {name}", alert["expr"]) for name, alert in alerts().items()]
    seen = set()
    for where, expression in asked:
        for name in re.findall(r"\bray_dec_\w+", expression):
            assert name in EXPORTED, where
            seen.add(name)
        labels = set().union(*(EXPORTED[n].labels for n in EXPORTED)) | {*LABELS, "instance"}
        for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            assert {label.strip() for label in by.split(",")} <= labels | {"alertname"}, where
    assert seen == set(EXPORTED)  # and nothing is exported for nobody


def test_grafana_knows_every_field() -> None:
    """Grafana's own model of a dashboard reads the file and writes it again, losing nothing."""
    dashboard = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    model = dashboard.Dashboard.from_json(DASHBOARD)
    again = json.loads(encoder.JSONEncoder().encode(model))
    assert list(lost(DASHBOARD, again)) == []


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Paths of values that are in the first alone."""
    if isinstance(before, dict):
        for name, value in before.items():
            if not isinstance(after, dict) or name not in after:
                yield f"{path}.{name}"
            else:
                yield from lost(value, after[name], f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif before != after:
        yield path


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
