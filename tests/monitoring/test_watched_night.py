"""A real night on a real cluster, seen by the real Prometheus, and its log line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from conftest import SMALL, Finished, blobs
from faults.proxy import Fault, Proxy, Request
from object_store import BUCKET
from ray.cluster_utils import Cluster

from monitoring.prometheus import Prometheus, free_port, programs
from monitoring.test_dashboard_and_alerts import DASHBOARD, RULES
from pipeline.run import stages_of
from pipeline.storage import Store

pytestmark = pytest.mark.cluster

ROWS, WIDTH, SHARDS, CLUSTERS = 20_000, 32, 4, 3
SLICES = 3  # of a MiB
DS = "2026-01-31"


@dataclass(frozen=True)
class Watched:
    """A night that is over.

    Attributes:
        prometheus: Has scraped it, and still runs.
        span: Start and end, unix time.
        err: What the job wrote to stderr.
        log: What is kept of it in the run.
        lake: Its output.
        start: Starts it again, and waits for its end.
    """

    prometheus: Prometheus
    span: tuple[float, float]
    summary: dict[str, Any]
    err: str
    log: str
    lake: Store
    start: Callable[..., Finished]


@pytest.fixture(scope="module")
def cluster(s3_env: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Address of a head that only the driver is on, and one node; where both export metrics."""
    programs()  # or there is nothing to start it for
    ports = [free_port() for _ in range(2)]
    head = {"num_cpus": 0, "include_dashboard": False, "metrics_export_port": ports[0]}
    with pytest.MonkeyPatch.context() as patch:
        # A Ray that this process started before leaves "token"; there is none here.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(num_cpus=4, metrics_export_port=ports[1])
        host = found.address.partition(":")[0]
        yield found.address, [f"{host}:{port}" for port in ports]
        found.shutdown()


def _rules() -> dict[str, Any]:
    """The alerts, at once: how long they wait is tested without waiting."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule.pop("for", None)
    return rules


class _OnceInAssign:
    """Whether assign reads a shard for the first time; it comes after the model."""

    def __init__(self) -> None:
        self._modelled = False
        self._hit: set[str] = set()

    def __call__(self, request: Request) -> bool:
        self._modelled |= "/models/" in request.path
        first = request.method == "GET" and request.key not in self._hit
        if not (self._modelled and first and "/table/" in request.path):
            return False
        self._hit.add(request.key)
        return True


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
    s3_env: dict[str, str],
    cluster: tuple[str, list[str]],
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    table, lake = (Store(f"s3://{BUCKET}/{name}") for name in ("table", "lake"))
    for number in range(SHARDS):
        part = blobs(ROWS, width=WIDTH).slice(number * ROWS // SHARDS, ROWS // SHARDS)
        table.write_table(f"shard-{number}.parquet", part)
    address, targets = cluster
    faults = [Fault("503", on=_OnceInAssign())]
    with (
        Proxy(s3_env["AWS_ENDPOINT_URL"], faults) as proxy,
        Prometheus(folder / "prometheus", targets, _rules()) as server,
    ):
        settings = {
            "source": {"path": table.url, "features": ["x"], "keys": ["id"]},
            "output": lake.url,
            "clusters": CLUSTERS,
            "storage": {"endpoint": proxy.url},
            **SMALL,
            "refine": {"passes": 2, "tol": 0},  # both
            "execution": {"workers": 2, "cpus_per_worker": 1, "target_slice_mib": 1},
        }
        (folder / "night.yaml").write_text(yaml.safe_dump(settings))

        def start(*words: str) -> Finished:
            command = [sys.executable, "-m", "jobs.nightly", "--config", "night.yaml", "--json"]
            result = subprocess.run(
                [*command, "--ds", DS, *words],
                cwd=folder,
                env={**os.environ, "RAY_ADDRESS": address, "DEC_LOG_FORMAT": "json"},
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert result.returncode == 0, result.stderr
            return Finished(result.returncode, result.stdout, result.stderr)

        began = time.time()
        result = start()
        # Nothing waits for the last values: they were handed over before the driver ended.
        server.wait_for("ray_dec_ended_timestamp_seconds")
        time.sleep(3)  # a range is looked at step by step: the last of them is to see these values
        run_id = result.json["run_id"]
        (log,) = lake.list(f"runs/{run_id}/logs")
        text = lake.read_bytes(f"runs/{run_id}/logs/{log.name}").decode()
        yield Watched(server, (began, time.time()), result.json, result.err, text, lake, start)


# What a panel must show of this night: the last value of each of its series.
NOT_NEGATIVE = (0.0, float("inf"))
EXPECTED: dict[str, tuple[float, float]] = {
    "Rows": (ROWS, ROWS),
    "Rows assigned": (ROWS, ROWS),
    "Since last progress": (0, 600),
    "Newest night": (1000 * 1769817600, 1000 * 1769817600),  # DS
    "Stages": (0, 0),  # nothing is at work any more
    "Progress of the stage": (0.9, 1),  # training leaves out what is held out
    "Label change": (0, 1),
    "Clusters with rows": (CLUSTERS, CLUSTERS),
    "Largest cluster": (1 / CLUSTERS, 0.5),
    "CPU of the nodes": (0, 100),
    "Memory of the nodes": (0.001, 1),
}


def _filled(expression: str, run_id: str) -> str:
    """A query as Grafana sends it, with this run chosen."""
    variables = {"pipeline": "night", "run_id": run_id, "__rate_interval": "30s", "__range": "1h"}
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_each_query_of_the_dashboard_finds_the_run(watched: Watched, panel: dict[str, Any]) -> None:
    low, high = EXPECTED.get(panel["title"], NOT_NEGATIVE)
    for target in panel["targets"]:
        query = _filled(target["expr"], watched.summary["run_id"])
        series = watched.prometheus.query_range(query, *watched.span)
        assert series, query
        for one in series:
            value = float(one["values"][-1][1])
            assert low <= value <= high, (query, one["metric"], value)


def test_the_variables_of_the_dashboard_find_the_run(watched: Watched) -> None:
    queries = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert len(queries) == 2
    found = {}
    for query in queries:
        series, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        series = f"last_over_time({_filled(series, '.*')}[1h])"
        found[label] = {one["metric"][label] for one in watched.prometheus.query(series)}
    assert found == {"pipeline": {"night"}, "run_id": {watched.summary["run_id"]}}


def _last(watched: Watched, selector: str) -> dict[str, float]:
    """The last value of each stage's series, over all processes that had one."""
    query = f"sum by (stage) (last_over_time(ray_{selector}[1h]))"
    return {
        one["metric"]["stage"]: float(one["value"][1]) for one in watched.prometheus.query(query)
    }


def test_numbers_are_those_of_the_summary(watched: Watched) -> None:
    summary = watched.summary
    assert _last(watched, "dec_loss")["pretrain"] == pytest.approx(summary["pretrain_loss"])
    assert _last(watched, "dec_kl")["refine"] == pytest.approx(summary["kl"])
    assert _last(watched, "dec_label_change")["refine"] == pytest.approx(summary["label_change"])
    share = max(summary["cluster_rows"]) / ROWS
    assert _last(watched, "dec_largest_share")["assign"] == pytest.approx(share)
    seconds = {stage["stage"]: stage["seconds"] for stage in summary["stages"]}
    found = _last(watched, "dec_stage_seconds")
    # Which it cannot state itself, nor what comes after it.
    assert found.pop("summary") >= 0
    assert found.pop("report") >= 0
    assert found == pytest.approx(seconds)


def test_counts_are_complete_in_a_run_that_loses_no_worker(watched: Watched) -> None:
    assert _last(watched, "dec_rows_processed_total")["assign"] == ROWS
    # Each worker reads its share once and keeps it; refine is another process.
    read = _last(watched, "dec_rows_read_total")
    assert {stage: read[stage] for stage in ("pretrain", "refine", "assign")} == {
        "pretrain": ROWS,
        "refine": ROWS,
        "assign": ROWS,
    }
    bytes_read = _last(watched, "dec_bytes_read_total")
    assert bytes_read["assign"] > WIDTH * 4 * ROWS * 0.9  # x, a bit less than in memory
    assert _last(watched, "dec_bytes_written_total")["assign"] > ROWS
    # One line for each.
    lines = [json.loads(line) for line in watched.log.splitlines()]
    retries = Counter(line["stage"] for line in lines if ", attempt " in line["message"])
    assert _last(watched, "dec_retries_total") == retries == {"assign": SHARDS}


def test_no_series_grows_with_the_input(watched: Watched) -> None:
    found = watched.prometheus.query('count by (__name__) ({__name__=~"ray_dec_.+"})')
    stages, processes = (
        len(stages_of("refit")),
        4,
    )  # driver; two workers of a training or actors; a task
    for one in found:
        assert float(one["value"][1]) <= stages * processes, one["metric"]
    labels = set().union(*(one["metric"] for one in watched.prometheus.query(
        'last_over_time({__name__=~"ray_dec_.+"}[1h])'
    )))  # fmt: skip
    assert labels & {"slice", "shard", "part"} == set()


def test_an_alert_fires_on_the_live_night(watched: Watched) -> None:
    firing = watched.prometheus.query('ALERTS{alertstate="firing"}')
    # Its ds is long ago; it got through, so that nothing else is wrong with it.
    assert {one["metric"]["alertname"] for one in firing} == {"DecNightLate"}


def test_the_log_is_json_in_every_line(watched: Watched) -> None:
    lines = [json.loads(line) for line in watched.log.splitlines()]
    run_id = watched.summary["run_id"]
    for line in lines:
        assert {"time", "level", "logger", "message", "run_id", "stage", "pid"} <= set(line), line
    ours = [line for line in lines if line["logger"].startswith("pipeline")]
    assert {line["run_id"] for line in ours} <= {run_id, ""}
    assert all(line["node"] for line in ours)
    complete = [line["stage"] for line in ours if ": complete in " in line["message"]]
    assert complete == [stage.name for stage in stages_of("refit")]
    records = [line for line in lines if line["logger"] == "jobs.console" and "figures" in line]
    assert any(line["stage"] == "refine" and "kl" in line["figures"] for line in records)
    # Workers: what they tried again, and for which slice.
    retries = [line for line in ours if ", attempt " in line["message"]]
    assigning = [line for line in retries if line["stage"] == "assign" and "worker" in line]
    assert {line["slice"] for line in assigning if "slice" in line} == set(range(SLICES))


def test_stderr_is_json_in_every_line(watched: Watched) -> None:
    lines = [json.loads(line) for line in watched.err.splitlines()]
    assert {line["run_id"] for line in lines} <= {watched.summary["run_id"], ""}
    messages = [line["message"] for line in lines]
    assert sum(": complete in " in message for message in messages) == len(stages_of("refit"))


def test_an_attempt_that_only_publishes_is_seen(watched: Watched) -> None:
    """It has nothing to do on Ray, but whoever waits for the night must learn of it."""
    run_id = watched.summary["run_id"]
    watched.lake.delete(
        [f"runs/{run_id}/stages/{name}/done.json" for name in ("publish", "summary")]
    )
    watched.start("--run-id", run_id)
    published = "last_over_time(ray_dec_published_timestamp_seconds[1h])"
    series = watched.prometheus.wait_for(f"{published} and on () count({published}) == 2")
    assert {one["metric"]["run_id"] for one in series} == {run_id}
