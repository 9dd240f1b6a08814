"""Faults at the one moment that counts: when readers of an Iceberg or Delta table see the night."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import published
from published_tables import FORMATS, Night, config_of, expected, first_reader, rows_of, versions

from pipeline.config import Config
from pipeline.errors import CommitStateUnknown

pytestmark = pytest.mark.faults


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return config_of(tmp_path / "lake", request.param)


# In another process, because it is killed: publishes a night whose files are there, and dies at a
# call of the table.
_KILLED = """
import os, signal, sys
from published_tables import Night, config_of
from pipeline.lake import tables
night = Night(config_of(sys.argv[1], sys.argv[2]), "b", "2026-01-01", range(5, 30))
kind, call = type(night.table), sys.argv[3]
real = getattr(kind, call)
def killed(*arguments):
    if call == "prepare":
        real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(kind, call, killed)
night.publish()
"""


@pytest.mark.parametrize("call", ["prepare", "follow"])
def test_sigkill_around_the_log(config: Config, call: str, ledger: Any) -> None:
    side = "before" if call == "prepare" else "after"
    where = f"publish into {config.lake.format}, {side} the log"
    before = Night(config, "a", "2026-01-01", range(20))
    other = Night(config, "o", "2026-01-02", range(7))
    for night in (before, other):
        night.publish()
    ledger.injected("SIGKILL of the driver", where)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, config.output, config.lake.format, call],
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL
    # Late, but whole: nobody sees a part of it, nor both.
    assert rows_of(first_reader(config)(config)) == expected(before, other)
    in_log = before if call == "prepare" else Night(config, "b", "2026-01-01", range(5, 30))
    assert rows_of(published(config.output)) == expected(in_log, other)
    again = Night(config, "b", "2026-01-01", range(5, 30))
    again.publish()
    found = rows_of(first_reader(config)(config))
    assert found == rows_of(published(config.output)) == expected(again, other)
    ledger.survived("SIGKILL of the driver", where, rows=len(found))


@pytest.mark.parametrize("landed", [True, False])
def test_answer_that_is_lost(
    config: Config, landed: bool, monkeypatch: pytest.MonkeyPatch, ledger: Any
) -> None:
    Night(config, "a", "2026-01-01", range(20)).publish()
    night = Night(config, "b", "2026-01-01", range(5, 30))
    table = night.table
    table.prepare(night.commit)
    target, name = _the_commit(config)
    real = getattr(target, name)

    def lost(*arguments: Any, **named: Any) -> Any:
        if landed:
            real(*arguments, **named)
        raise OSError("connection reset by peer")

    where = f"publish into {config.lake.format}"
    fault = "upload that " + ("succeeded but answered an error" if landed else "fails on complete")
    ledger.injected(fault, where)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, lost)
        if landed:
            assert table.follow(night.commit, lambda: True)
        else:
            with pytest.raises(CommitStateUnknown, match="connection reset by peer; run b is"):
                table.follow(night.commit, lambda: True)
    before = versions(config)
    assert table.follow(night.commit, lambda: True)
    assert not landed or versions(config) == before
    found = rows_of(first_reader(config)(config))
    assert found == expected(night)
    ledger.survived(fault, where, rows=len(found))


def _the_commit(config: Config) -> tuple[Any, str]:
    """The call of the library that makes a commit visible."""
    if config.lake.format == "delta":
        import deltalake

        return deltalake.DeltaTable, "create_write_transaction"
    from pyiceberg.catalog.sql import SqlCatalog

    return SqlCatalog, "commit_table"
