"""The real Prometheus, where ``.ci/prometheus`` has put it, as tests talk to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml


def programs() -> Path:
    """The folder of prometheus and promtool; skips the test where there is none."""
    if not (named := os.environ.get("DEC_TEST_PROMETHEUS")):
        pytest.skip("DEC_TEST_PROMETHEUS names no folder; `.ci/prometheus` prints one")
    return Path(named)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


class Prometheus:
    """A server that scrapes targets every second; use as a context manager.

    Args:
        folder: Folder for its files.
        targets: Addresses to scrape, host:port.
        rules: Groups of rules, as Prometheus has them.
    """

    def __init__(self, folder: Path, targets: Sequence[str], rules: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [*targets]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._port = free_port()

    def __enter__(self) -> Prometheus:
        log = (self._folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                programs() / "prometheus",
                f"--config.file={self._folder}/prometheus.yaml",
                f"--storage.tsdb.path={self._folder}/series",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            cwd=self._folder,
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5).close()
                return self
            except OSError:  # nobody listens yet, or 503: it is not ready
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)

    def query(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """Series with their value now, or at a time."""
        return self._ask("query", query=query, time=at or time.time())

    def wait_for(self, query: str) -> list[dict[str, Any]]:
        """The same, as soon as there are any."""
        deadline = time.monotonic() + 60
        while not (found := self.query(query)):
            assert time.monotonic() < deadline, query
            time.sleep(0.2)
        return found

    def query_range(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """Series with their values, one a second."""
        return self._ask("query_range", query=query, start=start, end=end, step=1)

    def _ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from None
        return found
