"""The policies of infra/iam, enforced: they allow what a run does, and no more."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import blobs, config_of
from nights_by_hand import cluster, ids, publish_night, register, sample_of

from pipeline import storage
from pipeline.config import Retention, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.input.pinning import list_shards, pin
from pipeline.lake import lease
from pipeline.lake.receipts import read_receipts
from pipeline.lake.snapshots import Partition, assignment_files, publish
from pipeline.operations import garbage
from pipeline.operations.forgetting import forget
from pipeline.operations.forgotten_keys import KeySet
from pipeline.registry.clusters import rename
from pipeline.registry.entries import latest_entry
from pipeline.storage import Store, retries, s3

ROOT = Path(__file__).parents[2]
IAM = ROOT / "infra" / "iam"
BUCKET = "example-lake"
INPUT, OUTPUT = f"s3://{BUCKET}/items/", f"s3://{BUCKET}/dec/"


def policy(name: str) -> dict[str, Any]:
    return json.loads((IAM / f"{name}-policy.json").read_text())  # type: ignore[no-any-return]


@dataclass
class Cloud:
    """A store that asks IAM about every request.

    Attributes:
        endpoint: Its URL.
        keys: The access key of each user, by the name of the policy that it has.
        log: One line a request.
    """

    endpoint: str
    keys: dict[str, tuple[str, str]]
    log: Path


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """moto's server in a process of its own, because it enforces IAM for all clients."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    log = tmp_path_factory.mktemp("cloud") / "log"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Cloud(endpoint, _prepared(endpoint), log)
    finally:
        server.terminate()
        server.wait()


def _prepared(endpoint: str) -> dict[str, tuple[str, str]]:
    """A bucket with input, and a user for each policy; from then on IAM decides."""

    def client(service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
        )

    client("s3").create_bucket(Bucket=BUCKET)
    lifecycle = json.loads((IAM / "bucket-lifecycle.json").read_text())
    client("s3").put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=lifecycle)
    iam, keys = client("iam"), {}
    for trust in IAM.glob("trust-*.json"):
        iam.create_role(RoleName=trust.stem, AssumeRolePolicyDocument=trust.read_text())
    for name in ("run", "gc"):
        document = policy(name)
        for statement in document["Statement"]:
            # moto knows no s3:prefix; the test looks at the prefixes itself.
            statement.pop("Condition", None)
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(document))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        keys[name] = (made["AccessKeyId"], made["SecretAccessKey"])
    client("s3").put_object(Bucket=BUCKET, Key="other/object", Body=b"")
    content = storage.parquet_bytes(blobs(600))
    client("s3").put_object(Bucket=BUCKET, Key="items/part.parquet", Body=content)
    url, plain = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, data=b"0", headers=plain)).close()
    return keys


@pytest.fixture
def as_user(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)

    def become(name: str) -> None:
        key, secret = cloud.keys[name]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        s3.forget()

    yield become
    s3.forget()


def refused(act: Callable[[], Any]) -> None:
    with pytest.raises((PermissionError, PipelineError), match=r"(?i)denied|access is refused"):
        act()


def remove(location: str) -> None:
    """One by one: of requests that name several objects, moto asks IAM about the bucket."""
    with retries.answers_of(location):
        s3.client(location).rm_file(location)


def test_policies_are_about_the_nightly_config() -> None:
    config = load_config(str(ROOT / "configs" / "nightly.yaml"))
    assert (config.source.path, config.output) == (INPUT, OUTPUT)


def test_run_reads_its_input_writes_its_output_and_deletes_nothing(
    cloud: Cloud, as_user: Callable[[str], None], settings: dict[str, Any]
) -> None:
    as_user("run")
    lake = Store(OUTPUT)
    settings["source"] |= {"path": INPUT}
    settings["output"] = OUTPUT
    config = config_of(settings)
    storage.check_writable(OUTPUT)
    files = list_shards(config)
    assert pin(config, files).shards["rows"].to_pylist() == [600]
    for _ in range(2):  # the second finds a claim to follow, which it may not remove
        lease.take(lake, "2026-01-31", "run a", seconds=60).release()
    lake.write_json("runs/a/part.json", {"rows": 0, "files": []})
    assert lake.exists("runs/a/part.json")
    assert not lake.exists("runs/a/absent.json")
    partition = Partition(run_id="a", model_id="a", rows=0, files="runs/a/part.json")
    publish(lake, "2026-01-31", partition, "a")
    assert lake.list("runs/a")

    refused(lambda: remove(lake.locate("runs/a/part.json")))
    refused(lambda: Store(INPUT).write_bytes("part.parquet", b""))
    refused(lambda: Store(f"s3://{BUCKET}/other").read_bytes("object"))
    refused(lambda: Store(f"s3://{BUCKET}/other").write_bytes("object", b""))


def test_gc_collects_and_no_more(as_user: Callable[[str], None]) -> None:
    as_user("gc")
    lake = Store(OUTPUT)
    lake.write_json("runs/dead/part.json", {})
    done = garbage.collect(lake, Retention(), dry_run=False)
    assert done.skipped == []
    remove(lake.locate("runs/dead/part.json"))
    assert not lake.exists("runs/dead/part.json")
    refused(lambda: Store(INPUT).read_bytes("part.parquet"))
    refused(lambda: remove(f"{INPUT}part.parquet"))


def test_a_run_registers_clusters_and_gc_forgets_rows(
    as_user: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgetting deletes samples, for which runs have no permission."""

    def delete(lake: Store, paths: Sequence[str]) -> None:
        for path in paths:
            try:
                remove(lake.locate(path))
            except PipelineError:  # where S3 answers by object
                raise PermissionError(path) from None

    monkeypatch.setattr(Store, "delete", delete)
    as_user("run")
    lake = Store(f"{OUTPUT}nights")
    publish_night(lake, "r1", "2026-01-01", [(ids(1, 2, 3), [0, 0, 1])])
    register(lake, [cluster(0), cluster(1)], sample=[sample_of(ids(1, 3))])
    rename(lake, 0, "zero", who="run")
    before = assignment_files(lake)
    with pytest.raises(ConfigError, match="the right to delete below output"):
        forget(lake, KeySet(ids(1), "keys"), who="run")
    assert [receipt.finished for receipt in read_receipts(lake)] == [False]

    as_user("gc")
    forget(lake, KeySet(ids(1), "keys"), who="gc")
    assert [receipt.finished for receipt in read_receipts(lake)] == [True]
    assert not set(before) & set(assignment_files(lake))
    entry = latest_entry(lake)
    assert entry is not None
    assert entry.champion.reference.sample.rows == 1
    assert garbage.collect(lake, Retention(), dry_run=False).skipped == []


def test_listings_are_of_prefixes_that_the_condition_allows(cloud: Cloud) -> None:
    """After the tests above, whose requests the log has."""
    allowed = [
        prefix
        for statement in policy("run")["Statement"]
        for prefix in statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", [])
    ]
    asked = set(re.findall(rf"GET /{BUCKET}/?\?\S*prefix=([^& ]*)", cloud.log.read_text()))
    assert asked
    # A lake table's metadata is looked for above the input, too; a refusal there is no answer.
    metadata = ("_delta_log/", "metadata/", ".hoodie/")
    for prefix in map(urllib.parse.unquote, asked):
        if prefix and not prefix.endswith(metadata):
            assert any(fnmatch.fnmatchcase(prefix, pattern) for pattern in allowed), prefix


@pytest.mark.parametrize("path", sorted(IAM.glob("*-policy.json")), ids=lambda path: path.stem)
def test_policies_name_what_they_allow(path: Path) -> None:
    for statement in json.loads(path.read_text())["Statement"]:
        actions = statement["Action"]
        assert "*" not in "".join([actions] if isinstance(actions, str) else actions)
        assert statement["Resource"] not in ("*", "arn:aws:s3:::*")
        deletes = "s3:DeleteObject" in actions
        assert not deletes or path.stem == "gc-policy"


@pytest.mark.parametrize("path", sorted(IAM.glob("trust-*.json")), ids=lambda path: path.stem)
def test_roles_are_for_the_pods_alone(path: Path) -> None:
    (statement,) = json.loads(path.read_text())["Statement"]
    assert statement["Condition"]
    account = (ROOT / "infra" / "kubernetes" / "base" / "service-account.yaml").read_text()
    if path.stem == "trust-irsa":
        (subject,) = (
            value
            for name, value in statement["Condition"]["StringEquals"].items()
            if name.endswith(":sub")
        )
        assert subject == "system:serviceaccount:dec-pipeline:dec-pipeline"
        assert "\n  name: dec-pipeline\n" in account
