"""An object store that fails: some of its answers, for a while, or for good.

All requests of every process go through a proxy that breaks some of them. The workers learn of it
from the config, not from their environment.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import with_settings
from forked_dec import forked
from object_store import ACCESS_KEY, BUCKET, SECRET_KEY, SESSION_TOKEN

from faults.ledger import FULL
from faults.proxy import KINDS, Fault, Proxy, Request, is_write
from pipeline.errors import (
    CommitConflict,
    CommitStateUnknown,
    ConfigError,
    InputError,
    StorageRefused,
    TransientError,
)
from pipeline.lake.snapshots import (
    Partition,
    SnapshotFile,
    assignment_files,
    latest_snapshot,
    publish,
)
from pipeline.run import stages_of
from pipeline.storage import Store, open_input, retries, s3

pytestmark = pytest.mark.faults

ROWS = 600
TABLE = f"s3://{BUCKET}/table"
DS = "2026-01-31"
NAMES = {
    "503": "503 SlowDown",
    "500": "500",
    "reset": "connection reset mid-body",
    "truncated": "truncated body",
    "slow": "slow (1 KiB/s for 5 s)",
}


@pytest.fixture(scope="module")
def proxy(s3_endpoint: str, s3_env: dict[str, str]) -> Iterator[Proxy]:
    with Proxy(s3_endpoint) as between:
        yield between


@pytest.fixture(autouse=True)
def _no_faults_before_and_after(proxy: Proxy) -> Iterator[None]:
    proxy.faults, proxy.requests = [], []
    yield
    proxy.faults = []


@pytest.fixture
def table(s3_env: dict[str, str], table_folder: Path) -> str:
    """The table of the other tests, on S3."""
    for shard in table_folder.iterdir():
        Store(TABLE).write_bytes(shard.name, shard.read_bytes())
    return TABLE


@pytest.fixture(scope="module")
def cluster(s3_env: dict[str, str]) -> Iterator[Any]:
    """A Ray cluster whose nodes have credentials, and know of no endpoint."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    yield started
    started.shutdown()


@dataclass(frozen=True)
class Night:
    """Runs ``dec run`` through the proxy."""

    dec: Callable[..., Any]
    proxy: Proxy
    settings: dict[str, Any]
    env: dict[str, str]

    def __call__(self, lake: str, **changed: Any) -> Any:
        words = ("run", "--ds", DS, "--run-id", lake)
        output = f"s3://{BUCKET}/{lake}"
        return self.dec(
            *words, settings=self.settings | {"output": output, **changed}, env=self.env
        )


@pytest.fixture
def night(
    dec: Callable[..., Any],
    proxy: Proxy,
    table: str,
    settings: dict[str, Any],
    s3_env: dict[str, str],
) -> Night:
    """For what ends before Ray is needed."""
    settings["source"]["path"] = table
    settings["storage"] = {"endpoint": proxy.url}
    proxy.requests.clear()
    return Night(dec, proxy, settings, {**s3_env, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})


@pytest.fixture
def night_on_ray(night: Night, tmp_path: Path, cluster: Any) -> Night:
    dec = with_settings(tmp_path, forked)
    return replace(night, dec=dec, env={**night.env, "RAY_ADDRESS": cluster.address})


def rows_published_once(lake: str) -> int:
    """Compare what is published with the input, by key; returns the rows compared."""
    ids: list[int] = []
    for path in assignment_files(Store(f"s3://{BUCKET}/{lake}"), DS):
        with open_input(path) as file:
            part = pq.read_table(file)
        assert part["cluster_id"].null_count == 0
        assert pc.min(part["confidence"]).as_py() > 0
        ids += part["id"].to_pylist()
    assert sorted(ids) == list(range(ROWS))
    return len(ids)


def the_end(result: Any, lake: str) -> str:
    """Error of a failed run, and the end of its log."""
    logs = Store(f"s3://{BUCKET}/{lake}/runs/{lake}/logs")
    text = [logs.read_bytes(file.name).decode()[-20_000:] for file in logs.list()[-1:]]
    return "\n".join([result.err, *text])


def by_stage(requests: list[Request]) -> Iterator[tuple[str, Request]]:
    """Each request with the stage that was at work, which ends as its marker is written."""
    names = iter([stage.name for stage in stages_of("refit")])
    stage, ended = next(names), set()
    for request in requests:
        yield stage, request
        marker = re.search(r"/stages/(\w+)/done\.json$", request.key)
        if request.method == "PUT" and marker and marker[1] == stage and stage not in ended:
            ended.add(stage)
            stage = next(names, "report")


def holds_no_secret(result: Any, lake: str, env: dict[str, str], *folders: Path) -> None:
    """Look for the credentials in all that a run left: what it printed, its files, Ray's logs."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    secrets = [env[name].encode() for name in names if name in env]
    files = s3.client(lake)
    left = {"out": result.out.encode(), "err": result.err.encode()}
    left |= {path: files.cat_file(path) for path in files.find(lake)}
    for folder in folders:
        left |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [(where, s) for where, text in left.items() for s in secrets if s in text] == []


# ------------------------------------------------------------------------ some of the requests


@pytest.mark.parametrize(
    ("kinds", "rate"),
    [*(((kind,), 0.2) for kind in KINDS), (KINDS, 0.01)] if FULL else [(KINDS, 0.05)],
    ids=str,
)
def test_a_share_of_the_requests_fails(
    night_on_ray: Night, ledger: Any, kinds: tuple[str, ...], rate: float
) -> None:
    proxy, lake = night_on_ray.proxy, f"faults-{'-'.join(kinds)}"
    # A slow answer needs a body, and takes five seconds.
    slow = Fault("slow", rate, on=lambda r: r.method == "GET", times=None if FULL else 2)
    proxy.faults = [slow if kind == "slow" else Fault(kind, rate) for kind in kinds]
    result = night_on_ray(lake)
    proxy.faults = []
    hit = Counter((request.fault, stage) for stage, request in by_stage(proxy.requests))
    hit = Counter({key: times for key, times in hit.items() if key[0]})
    for (kind, stage), times in hit.items():
        ledger.injected(f"object store: {NAMES[kind]}, {rate:.0%} of requests", stage, times)
    assert result.code == 0, the_end(result, lake)
    # At 1% of two hundred requests, not every kind need come up.
    assert {kind for kind, _ in hit} == set(kinds) if rate > 0.01 else hit
    rows = rows_published_once(lake)
    for (kind, stage), times in hit.items():
        fault = f"object store: {NAMES[kind]}, {rate:.0%} of requests"
        ledger.survived(fault, stage, rows=rows, times=times)


def to_part(request: Request) -> bool:
    return is_write(request) and "/assignments/part-" in request.path


def to_snapshot(request: Request) -> bool:
    return is_write(request) and "/snapshots/" in request.path


def test_uploads_that_fail_and_uploads_whose_answer_is_lost(
    night_on_ray: Night, cluster: Any, ledger: Any
) -> None:
    lake = "faults-uploads"
    names = {"500": "upload that fails", "lost": "upload that succeeded but answered an error"}
    at = {"assign": to_part, "publish": to_snapshot}
    # Each is put three times: refused, taken without saying so, taken.
    night_on_ray.proxy.faults = [
        Fault(kind, on=on, times=1) for kind in ("500", "lost") for on in at.values()
    ]
    result = night_on_ray(lake)
    tried = {
        stage: [request.fault for request in night_on_ray.proxy.requests if on(request)]
        for stage, on in at.items()
    }
    assert tried == {"assign": ["500", "lost", ""], "publish": ["500", "lost", ""]}
    for stage in at:
        for kind in ("500", "lost"):
            ledger.injected(names[kind], stage)
    assert result.code == 0, the_end(result, lake)
    rows = rows_published_once(lake)
    store = Store(f"s3://{BUCKET}/{lake}")
    assert [file.name for file in store.list("snapshots")] == ["1.json"]
    assert store.read_json("current.json") == store.read_json("snapshots/1.json")
    logs = b"".join(
        store.read_bytes(f"runs/{lake}/logs/{f.name}") for f in store.list(f"runs/{lake}/logs")
    )
    assert (
        len(re.findall(rb"snapshots/1.json: InternalError, HTTP status 500, attempt \d of 9", logs))
        == 2
    )
    session = Path(cluster.head_node.get_session_dir_path())
    holds_no_secret(result, store.url, night_on_ray.env, session / "logs")
    for stage in at:
        for kind in ("500", "lost"):
            ledger.survived(names[kind], stage, rows=rows)


# -------------------------------------------------------------------- a commit without an answer


@pytest.fixture
def here(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """This process goes through the proxy, and does not wait long between attempts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(retries, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    s3.forget()
    yield proxy
    s3.forget()


def partition(run_id: str) -> Partition:
    return Partition(run_id=run_id, model_id="m", rows=1, files="f")


@pytest.mark.parametrize("kind", ["lost", "reset", "truncated"])
def test_lost_answer_to_a_commit_is_looked_up(here: Proxy, ledger: Any, kind: str) -> None:
    lake = Store(f"s3://{BUCKET}/commit-{kind}")
    here.faults = [Fault(kind, on=to_snapshot, times=1)]
    ledger.injected("upload that succeeded but answered an error", f"publish, {kind}")
    mine = publish(lake, DS, partition("mine"), "mine-1")
    assert [r.fault for r in here.requests if to_snapshot(r)] == [kind, ""]
    assert latest_snapshot(lake) == mine
    assert [file.name for file in lake.list("snapshots")] == ["1.json"]
    ledger.survived("upload that succeeded but answered an error", f"publish, {kind}", rows=0)


def test_commit_that_another_run_took_meanwhile_is_not_ours(here: Proxy, s3_endpoint: str) -> None:
    # The store did not do ours, and did theirs before we asked again.
    lake = Store(f"s3://{BUCKET}/commit-raced")
    directly = s3fs.S3FileSystem(endpoint_url=s3_endpoint, skip_instance_cache=True)

    def they_come_first(request: Request) -> bool:
        if not to_snapshot(request):
            return False
        directly.pipe_file(lake.locate("snapshots/1.json"), b'{"by": "them"}')
        return True

    here.faults = [Fault("500", on=they_come_first, times=1)]
    assert lake.create_json("snapshots/1.json", {"by": "us"}) is False
    assert [r.fault for r in here.requests if to_snapshot(r)] == ["500", ""]
    assert lake.read_json("snapshots/1.json") == {"by": "them"}


@pytest.mark.parametrize(("first", "landed"), [("lost", True), ("500", False)])
def test_commit_that_stays_unknown_stops_the_run_and_is_looked_up_next_time(
    here: Proxy, ledger: Any, first: str, landed: bool
) -> None:
    lake = Store(f"s3://{BUCKET}/commit-unknown-{first}")
    fault = "upload that succeeded but answered an error" if landed else "upload that fails"

    def from_then_on(request: Request) -> bool:  # looking whether it landed fails as well
        began = any(seen.fault for seen in here.requests)
        return to_snapshot(request) or (landed and began and "snapshots" in request.path)

    here.faults = [Fault(first, on=to_snapshot, times=1), Fault("503", on=from_then_on)]
    ledger.injected(fault, "publish, until the end")
    with pytest.raises(CommitStateUnknown, match="nothing was deleted"):
        publish(lake, DS, partition("mine"), "mine-1")
    assert [r.fault for r in here.requests if to_snapshot(r)] == [first, "503", "503", "503"]
    here.faults = []
    here.requests.clear()
    assert (latest_snapshot(lake) is not None) == landed
    again = publish(lake, DS, partition("mine"), "mine-1")
    assert len([r for r in here.requests if to_snapshot(r)]) == (0 if landed else 1)
    assert again.snapshot == 1
    assert latest_snapshot(lake) == again
    ledger.survived(fault, "publish, until the end", rows=0)


# ------------------------------------------------------------------------------------- for good


def test_store_that_fails_for_longer_than_we_try(night: Night) -> None:
    night.proxy.faults = [Fault("503", on=lambda r: r.method != "PUT")]
    result = replace(night, env=night.env | {"AWS_MAX_ATTEMPTS": "3"})("faults-outage")
    assert result.code == TransientError.exit_code
    (line,) = result.err.splitlines()
    assert "keeps failing" in line
    assert "3 times in a row; the same run id continues" in line
    asked = Counter((request.method, request.key) for request in night.proxy.requests)
    assert max(asked.values()) == 3


def test_reads_that_fail_for_longer_than_we_try(here: Proxy) -> None:
    store = Store(f"s3://{BUCKET}/outage")
    store.write_bytes("f", b"content")
    here.requests.clear()
    here.faults = [Fault("truncated", on=lambda r: r.method == "GET")]
    with pytest.raises(TransientError, match=r"s3://.*/f: the object store keeps failing"):
        store.read_bytes("f")
    assert [r.method for r in here.requests] == ["GET"] * 4
    here.requests.clear()
    with (
        pytest.raises(TransientError, match=r"s3://.*/f: the object store keeps failing"),
        open_input(store.locate("f")) as source,
    ):
        source.read()
    assert [r.method for r in here.requests] == ["HEAD", "GET", "GET", "GET", "GET"]


def of_table(request: Request) -> bool:
    return "table" in request.path


@pytest.mark.parametrize(
    ("fault", "changed", "kind", "message"),
    [
        (Fault("403", on=of_table), {}, StorageRefused, f"{TABLE}: access is refused"),
        (Fault("403", on=is_write), {}, StorageRefused, "access is refused (AccessDenied"),
        (None, {"output": "s3://no-such-bucket-1/lake"}, ConfigError, "output=s3://no-such"),
        (
            None,
            {"source": {"path": "s3://no-such-bucket-1/t", "features": ["x"]}},
            InputError,
            "s3://no-such",
        ),
    ],
    ids=["403 of the input", "403 of the output", "no bucket for output", "no bucket of input"],
)
def test_what_the_store_refuses_is_not_asked_for_again(
    night: Night, ledger: Any, fault: Fault | None, changed: dict[str, Any], kind: Any, message: str
) -> None:
    night.proxy.faults = [fault] if fault else []
    ledger.injected("permanent error of the object store", kind.__name__)
    result = night("faults-refused", **changed)
    assert result.code == kind.exit_code
    (line,) = result.err.splitlines()
    assert message in line
    # Whoever holds a lease looks at it again and again, and removals differ in their bodies only.
    asked = Counter(
        (request.method, request.path)
        for request in night.proxy.requests
        if "leases" not in request.path and not request.path.endswith("?delete")
    )
    assert max(asked.values()) == 1, asked
    ledger.survived("permanent error of the object store", kind.__name__, rows=0)


def test_wrong_credentials_are_refused_and_never_shown(night: Night, ledger: Any) -> None:
    env = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
    }
    if not os.environ.get("DEC_TEST_S3_ENDPOINT"):  # moto takes any
        night.proxy.faults = [Fault("wrong key")]
    ledger.injected("wrong credentials", "start")
    result = replace(night, env=night.env | env)("faults-credentials")
    assert result.code == StorageRefused.exit_code
    (line,) = result.err.splitlines()
    assert "check the credentials" in line
    assert len(night.proxy.requests) <= 2
    holds_no_secret(result, f"s3://{BUCKET}/faults-credentials", env)
    ledger.survived("wrong credentials", "start", rows=0)


def test_no_credentials_at_all(night: Night, tmp_path: Path) -> None:
    env = {name: "" for name in night.env if name.startswith("AWS_") and "REGION" not in name}
    env |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    result = replace(night, env=night.env | env)("faults-none")
    assert result.code == StorageRefused.exit_code
    (line,) = result.err.splitlines()
    assert "credentials" in line
    assert night.proxy.requests == []


def test_each_way_to_fail_has_its_code_and_is_kept_until_it_is_overcome(
    night_on_ray: Night, cluster: Any, ledger: Any, s3_endpoint: str
) -> None:
    lake = "faults-forbidden"
    night_on_ray.proxy.faults = [Fault("403", on=to_part)]
    ledger.injected("permanent error of the object store", "assign")
    result = night_on_ray(lake)
    assert result.code == StorageRefused.exit_code
    line = result.err.splitlines()[-1]
    assert "/assignments/part-" in line
    assert "access is refused (AccessDenied, HTTP status 403)" in line
    assert len([r for r in night_on_ray.proxy.requests if to_part(r)]) == 1
    assert latest_snapshot(Store(f"s3://{BUCKET}/{lake}")) is None
    session = Path(cluster.head_node.get_session_dir_path())
    store = Store(f"s3://{BUCKET}/{lake}")

    def failure() -> dict[str, Any]:
        kept: dict[str, Any] = store.read_json(f"runs/{lake}/failure.json")
        assert kept["message"] == result.err.splitlines()[-1].removeprefix("error: ")
        assert (kept["run_id"], kept["ds"]) == (lake, DS)
        assert store.exists(kept["log"])
        return {name: kept[name] for name in ("kind", "exit_code", "stage", "retryable")}

    assert failure() == {
        "kind": "StorageRefused", "exit_code": 10, "stage": "assign", "retryable": False
    }  # fmt: skip

    night_on_ray.proxy.faults = [Fault("503", on=lambda r: "/snapshots/1.json" in r.path)]
    result = replace(night_on_ray, env=night_on_ray.env | {"AWS_MAX_ATTEMPTS": "2"})(lake)
    assert result.code == CommitStateUnknown.exit_code == 8, the_end(result, lake)
    assert failure() == {
        "kind": "CommitStateUnknown", "exit_code": 8, "stage": "publish", "retryable": False
    }  # fmt: skip

    directly = s3fs.S3FileSystem(endpoint_url=s3_endpoint, skip_instance_cache=True)
    theirs = SnapshotFile(
        snapshot=1,
        commit_id="theirs",
        run_id="theirs",
        ds=DS,
        committed_at="2026-02-01T00:00:00+00:00",
        partitions={DS: partition("theirs")},
    )

    def they_come_first(request: Request) -> bool:
        if to_snapshot(request):
            directly.pipe_file(store.locate("snapshots/1.json"), theirs.model_dump_json().encode())
        return to_snapshot(request)

    night_on_ray.proxy.faults = [Fault("500", on=they_come_first, times=1)]
    result = night_on_ray(lake)
    assert result.code == CommitConflict.exit_code == 7, the_end(result, lake)
    assert failure() == {
        "kind": "CommitConflict", "exit_code": 7, "stage": "publish", "retryable": True
    }  # fmt: skip
    assert store.read_json(f"runs/{lake}/failure.json")["resolved_at"] is None
    holds_no_secret(result, store.url, night_on_ray.env, session / "logs")

    night_on_ray.proxy.faults = []
    result = night_on_ray(lake)
    assert result.code == 0, the_end(result, lake)
    kept = store.read_json(f"runs/{lake}/failure.json")
    assert kept["kind"] == "CommitConflict"
    assert kept["resolved_at"] >= kept["at"]
    ledger.survived("permanent error of the object store", "assign", rows=rows_published_once(lake))
