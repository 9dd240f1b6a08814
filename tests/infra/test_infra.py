"""Example configs, the compose file of MinIO, and the table of exit codes."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import errors
from pipeline.config import load_config

ROOT = Path(__file__).parents[2]

# -------------------------------------------------------------------------------- the configs


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_config_loads(path: Path) -> None:
    load_config(str(path))


# ------------------------------------------------------------------------------- object store


@pytest.fixture
def minio() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "infra" / "minio" / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert set(compose["volumes"]) == {volume.split(":")[0] for volume in service["volumes"]}
    return service  # type: ignore[no-any-return]


def test_minio_is_where_its_comment_says_and_for_this_machine_alone(minio: dict[str, Any]) -> None:
    ports = {tuple(port.split(":")) for port in minio["ports"]}
    assert {host for host, _, _ in ports} == {"127.0.0.1"}
    text = (ROOT / "infra" / "minio" / "compose.yaml").read_text()
    assert re.findall(r"DEC_TEST_S3_ENDPOINT=http://127.0.0.1:(\d+)", text) == ["9000"]
    assert ("127.0.0.1", "9000", "9000") in ports


def test_minio_has_credentials_of_the_environment_and_no_others(minio: dict[str, Any]) -> None:
    given = {"MINIO_ROOT_USER": "AWS_ACCESS_KEY_ID", "MINIO_ROOT_PASSWORD": "AWS_SECRET_ACCESS_KEY"}
    assert set(minio["environment"]) == set(given)
    for name, source in given.items():  # ${NAME:?…} has no default, and is an error without
        assert re.fullmatch(r"\$\{" + source + r":\?[^}]+\}", minio["environment"][name])


def test_minio_is_of_one_version(minio: dict[str, Any]) -> None:
    assert re.fullmatch(r"minio/minio:RELEASE\.[\dTZ-]+", minio["image"])


def test_without_a_real_object_store_ci_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".ci").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci" / "object-store", tmp_path / "repo" / ".ci")
    folder = tmp_path / "store"
    started = subprocess.run([script, "start", folder], capture_output=True, text=True)
    assert started.returncode == 1
    assert "s3-server is not there" in started.stderr
    assert not folder.exists()
    assert subprocess.run([script, "stop", folder]).returncode == 0


# ---------------------------------------------------------------------------------- exit codes


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "infra" / "guides" / "failures.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (yes|no) \| \S", text, flags=re.MULTILINE)
    kinds = {
        (str(kind.exit_code), name, "yes" if kind.retryable else "no")
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert sorted(rows) == sorted(kinds)
