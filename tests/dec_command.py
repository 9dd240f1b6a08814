"""``dec`` for tests: in a process of its own, as users have it, or seconds sooner in this one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def in_its_own_process(folder: Path, *words: str, env: Environment | None = None) -> Finished:
    """Run ``dec`` as a user does. For what a process is killed, or started with, or imports."""
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**own, "COLUMNS": "120", **(env or {})},
    )
    return Finished(result.returncode, result.stdout, result.stderr)


def in_this_process(folder: Path, *words: str, env: Environment | None = None) -> Finished:
    """Run ``dec`` without the five seconds that a new process takes to import Ray and torch.

    It uses the Ray that this process is connected to, if any, and leaves it running.
    """
    import typer.main

    from jobs.cli import app
    from pipeline.storage import s3

    with _restored(), _captured() as output, contextlib.chdir(folder):
        os.environ.update({"COLUMNS": "120", **(env or {})})
        s3.forget()
        try:
            typer.main.get_command(app).main(list(words), prog_name="dec")
            code: int | str | None = 0
        except SystemExit as end:
            code = end.code
    s3.forget()
    return Finished(int(code or 0), *output)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back what a command changes for the rest of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    ray = sys.modules.get("ray")
    shared = ray is not None and ray.is_initialized()
    with mock.patch.dict(os.environ), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.resetwarnings()  # as in a process of its own, where they are no errors
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        if shared:
            stack.enter_context(mock.patch.object(ray, "shutdown"))
        try:
            yield
        finally:
            root.handlers[:], root.level = handlers, level
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Keep what goes to standard output and error, also below Python; at the end, two texts."""
    output: list[str] = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in (1, 2)]
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor, file in zip((1, 2), files, strict=True):
            os.dup2(file.fileno(), descriptor)
        # On the descriptors themselves, which a command points elsewhere.
        streams = [open(d, "w", buffering=1, encoding="utf-8", closefd=False) for d in (1, 2)]
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                yield output
        finally:
            for stream in streams:
                stream.close()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
            for file in files:
                file.seek(0)
                output.append(file.read().decode())
