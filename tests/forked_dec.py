"""``dec`` in processes that are forked from one that has imported its libraries.

They may be killed and stopped like those that a user starts, and begin seconds sooner.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from dec_command import Finished

# What `dec run` imports while it works.
_IMPORTS = [
    *("jobs.cli", "jobs.night", "pipeline.run", "ray.data", "ray.train.torch", "sklearn.cluster"),
    *("scipy.optimize", "duckdb", "s3fs", "pipeline.report.page"),
]
_CONTEXT = multiprocessing.get_context("forkserver")
_variables: Mapping[str, str] | None = None  # of Ray, when the present one was started


class ForkedDec:
    """A command under way, with the methods of a ``subprocess.Popen``.

    Args:
        words: Words after ``dec``.
        folder: Working directory.
        env: Environment; nothing is inherited.
    """

    def __init__(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        _ready_for(env)
        self._output = Path(tempfile.mkdtemp(dir=folder, prefix="output-"))
        arguments = (list(words), str(folder), dict(env), str(self._output))
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("dec", timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its standard output and error, when it has ended."""
        self.wait(timeout)
        out, err = ((self._output / name).read_text() for name in ("out", "err"))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _ready_for(env: Mapping[str, str]) -> None:
    """Have a process to fork from. Ray reads its variables when it is imported."""
    global _variables
    variables = {name: value for name, value in env.items() if name.startswith("RAY_")}
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):  # later
        variables.pop(name, None)
    if variables == _variables:
        return
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._stop()
    server.set_forkserver_preload(_IMPORTS)
    with mock.patch.dict(os.environ, env, clear=True):
        server.ensure_running()
    _variables = variables


def forked(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Finished:
    """Run ``dec`` to its end."""
    process = ForkedDec(words, folder, {**os.environ, "COLUMNS": "120", **(env or {})})
    out, err = process.communicate(timeout=600)
    return Finished(process.wait(), out, err)


def _run(words: list[str], folder: str, env: dict[str, str], output: str) -> None:
    """In the new process."""
    os.setsid()  # a process group of its own
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # by the new environment
    sys.path.insert(0, folder)
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{output}/{name}", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["dec", *words]

    from jobs.cli import main

    main()
