"""How requests look on the wire, for both clients: addressing, region, encryption, credentials.

moto answers; it takes hosts that begin with a bucket, and any credentials.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Proxy
from pyarrow import fs

from pipeline.config import Storage
from pipeline.errors import StorageRefused
from pipeline.storage import Store, open_input, s3, version_of
from pipeline.storage.finding import find_parquet

BUCKET = "dec-pipeline-options"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://localhost:{1}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """A process with credentials in its environment and nothing else; a bucket is there."""
    for name in (
        "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
        "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", s3.SETTINGS_VARIABLE,
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "in-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    resolve = socket.getaddrinfo

    def below_localhost(host: Any, *rest: Any, **named: Any) -> Any:
        """As RFC 6761 has it, and curl, but not every C library."""
        name = host.decode() if isinstance(host, bytes) else host
        return resolve("127.0.0.1" if str(name).endswith(".localhost") else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", below_localhost)
    with Proxy(moto) as between:
        use(between)
        files = s3.client(f"s3://{BUCKET}")
        if not files.exists(BUCKET):
            files.call_s3("create_bucket", Bucket=BUCKET)
        yield between
    s3.use({})


def use(proxy: Proxy, **settings: Any) -> None:
    """Take settings as a config gives them, and forget the requests so far."""
    given = Storage(endpoint=f"http://localhost:{proxy.port}", **settings)
    s3.use(given.model_dump())
    proxy.requests.clear()


def everything() -> None:
    """Make every kind of request that we make, with both clients."""
    store = Store(f"s3://{BUCKET}/some")
    store.write_bytes("a.parquet", b"content")
    assert store.read_bytes("a.parquet") == b"content"
    with open_input(store.locate("a.parquet")) as source:
        assert source.read() == b"content"
    (found,) = find_parquet(store.url).files
    assert found.version == version_of(found.url)
    s3.client(store.url).rm_file(store.locate("once.json"))
    assert store.create_json("once.json", {})
    assert [file.name for file in store.list()] == ["a.parquet", "once.json"]
    assert store.exists("a.parquet")


@pytest.mark.parametrize(
    ("addressing", "host", "path"),
    [
        ("auto", "localhost", f"/{BUCKET}"),
        ("path", "localhost", f"/{BUCKET}"),
        ("virtual", f"{BUCKET}.localhost", "/"),
    ],
)
def test_addressing(proxy: Proxy, addressing: str, host: str, path: str) -> None:
    use(proxy, addressing=addressing)
    everything()
    assert {request.headers["host"] for request in proxy.requests} == {f"{host}:{proxy.port}"}
    assert all(request.path.startswith(path) for request in proxy.requests)
    assert any(request.path.startswith(f"/{BUCKET}") for request in proxy.requests) == (
        addressing != "virtual"
    )
    clients = {request.headers["user-agent"].split("/")[0] for request in proxy.requests}
    assert len(clients) == 2


def scopes(proxy: Proxy) -> set[tuple[str, str]]:
    """Access key and region of each signature."""
    signed = [request.headers["authorization"] for request in proxy.requests]
    return {tuple(text.split("Credential=")[1].split("/")[:3:2]) for text in signed}  # type: ignore[misc]


def in_the_config(proxy: Proxy, _: pytest.MonkeyPatch) -> None:
    use(proxy, region="eu-north-1")


def in_the_environment(proxy: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_REGION", "eu-north-1")
    use(proxy)


def in_the_other_variable(proxy: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    use(proxy)


@pytest.mark.parametrize("where", [in_the_config, in_the_environment, in_the_other_variable])
def test_region(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, where: Callable[[Proxy, Any], None]
) -> None:
    where(proxy, monkeypatch)
    everything()
    assert scopes(proxy) == {("in-the-environment", "eu-north-1")}


def test_profile(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[night]\naws_access_key_id = of-the-profile\naws_secret_access_key = s\n"
    )
    (tmp_path / "config").write_text(
        f"[profile night]\nregion = eu-west-3\nendpoint_url = http://localhost:{proxy.port}\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "night")
    s3.use({})
    proxy.requests.clear()
    everything()
    assert scopes(proxy) == {("of-the-profile", "eu-west-3")}


def test_session_token(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-a-role")
    use(proxy)
    everything()
    assert {request.headers["x-amz-security-token"] for request in proxy.requests} == {"of-a-role"}


def test_encryption_is_asked_for_with_every_write(proxy: Proxy) -> None:
    use(proxy, encryption="aws:kms", kms_key="1234abcd")
    everything()
    writes = [request.headers for request in proxy.requests if request.method == "PUT"]
    assert len(writes) == 2
    for headers in writes:
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "1234abcd"
    head = s3.client(BUCKET).call_s3("head_object", Bucket=BUCKET, Key="some/a.parquet")
    assert head["ServerSideEncryption"] == "aws:kms"


def test_anonymous_buckets_are_read_unsigned_and_others_signed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything()
    files = s3.client(BUCKET)
    files.call_s3("put_bucket_acl", Bucket=BUCKET, ACL="public-read")
    files.call_s3("put_object_acl", Bucket=BUCKET, Key="some/a.parquet", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    use(proxy, anonymous_buckets=[BUCKET])
    store = Store(f"s3://{BUCKET}/some")
    assert store.read_bytes("a.parquet") == b"content"
    assert [file.name for file in find_parquet(store.url).files] == ["a.parquet"]
    assert proxy.requests
    assert not any("authorization" in request.headers for request in proxy.requests)
    with pytest.raises(StorageRefused, match="credentials"):
        Store("s3://another-bucket").read_bytes("a")


def test_workers_are_told_what_the_driver_uses(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use({"addressing": "virtual", "region": None})
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    told = s3.settings_for_workers()
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    s3.forget()
    meta = s3.client(BUCKET).s3.meta
    assert (meta.endpoint_url, meta.region_name) == (proxy.url, "eu-north-1")
    assert meta.config.s3["addressing_style"] == "virtual"
    assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("addressing", "endpoint", "virtual"),
    [
        ("auto", None, False),  # which pyarrow takes for virtual, as botocore does
        ("virtual", None, True),
        ("path", "https://s3.eu-north-1.amazonaws.com", False),
    ],
)
def test_aws_itself(proxy: Proxy, addressing: str, endpoint: str | None, virtual: bool) -> None:
    s3.use({"region": "eu-north-1", "addressing": addressing})
    made, name = s3.arrow_filesystem("s3://bucket/key")
    expected = fs.S3FileSystem(
        access_key="in-the-environment",
        secret_key="secret",
        region="eu-north-1",
        endpoint_override=endpoint,
        force_virtual_addressing=virtual,
        request_timeout=60,
        connect_timeout=10,
    )
    assert name == "bucket/key"
    assert made == expected
    assert made != fs.S3FileSystem(region="eu-north-1", anonymous=True)
