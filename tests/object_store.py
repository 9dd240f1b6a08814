"""The S3 endpoint that tests talk to over HTTP.

The one that DEC_TEST_S3_ENDPOINT names, with credentials as AWS_* variables, else moto's server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# One for each worker of pytest-xdist, for a test module removes its bucket.
BUCKET = "dec-pipeline-test" + os.environ.get("PYTEST_XDIST_WORKER", "")
# moto takes any; tests look for these in everything that a run leaves behind.
ACCESS_KEY = "AKIAPLANTED0F1E2D3C4"
SECRET_KEY = "planted-secret-0f1e2d"
SESSION_TOKEN = "planted-session-token-3c4b5a"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 endpoint."""
    if named := os.environ.get("DEC_TEST_S3_ENDPOINT"):
        yield named
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def s3_env(s3_endpoint: str) -> Iterator[dict[str, str]]:
    """Environment of a process that uses the endpoint, and of this one; there is a bucket."""
    from pipeline.storage import s3

    env = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if not os.environ.get("DEC_TEST_S3_ENDPOINT"):
        env["AWS_SESSION_TOKEN"] = SESSION_TOKEN
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        s3.forget()
        files = s3.client(f"s3://{BUCKET}")
        if not files.exists(BUCKET):
            files.call_s3("create_bucket", Bucket=BUCKET)
        yield env
        if files.exists(BUCKET):
            files.rm(BUCKET, recursive=True)
    s3.forget()
