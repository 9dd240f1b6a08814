"""A process whose libraries hang ends all the same, with its own exit code."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import cli, ending, session
from jobs.ending import print_any_character

# A thread that nobody ends, and a handler that hangs: either kept a process forever.
HANGS = """
import atexit, threading, time
from jobs import ending
ending.CLEANUP_SECONDS = 0.5
threading.Thread(target=time.sleep, args=(600,)).start()
{handler}
def main():
    print("result")
    {end}
ending.end_process(main)
"""


@pytest.mark.parametrize(
    ("handler", "end", "code", "note"),
    [
        ("", "return 5", 5, ""),
        ("", "raise SystemExit(2)", 2, ""),
        ("", "raise SystemExit", 0, ""),
        ("atexit.register(print, 'handled')", "return 0", 0, ""),
        ("atexit.register(time.sleep, 600)", "return 5", 5, "did not end within 0.5 s"),
    ],
)
def test_what_hangs_is_left(handler: str, end: str, code: int, note: str) -> None:
    command = [sys.executable, "-c", HANGS.format(handler=handler, end=end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout.splitlines() == ["result", *(["handled"] if "handled" in handler else [])]
    assert note in done.stderr
    assert bool(note) == bool(done.stderr)


def test_a_ray_that_does_not_stop_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = threading.Event()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(shutdown=stopped.wait))  # type: ignore[arg-type]
    monkeypatch.setattr(session, "_STOP_SECONDS", 0.1)
    session.stop_ray()
    stopped.set()
    assert "Ray did not stop within 0.1 s" in caplog.text


def test_the_command_ends_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Callable[[], Any]] = []
    monkeypatch.setattr(cli, "end_process", ended.append)
    cli.main()
    assert ended == [cli.app]
    monkeypatch.setattr(ending, "ends_within", lambda *_: True)
    monkeypatch.setattr(ending.os, "_exit", lambda code: ended.append(code))
    monkeypatch.setattr(sys, "argv", ["dec", "check", "missing.yaml"])
    ending.end_process(cli.app)
    assert ended[1:] == [2]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_character_that_the_terminal_lacks_is_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # none that could be told so
    print_any_character()
    print("≤ 日本 \udcff")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"? ?? ?\n"
