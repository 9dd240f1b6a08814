"""A Ray session, and a screen that only we write to."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from pipeline.config import Config


@dataclass
class Screen:
    """The terminal, while everything else that is printed goes to a file.

    Attributes:
        out: What was standard output.
        err: What was standard error.
        log: The file that Ray, its workers and every library write to now.
    """

    out: IO[str] = field(default_factory=lambda: sys.stdout)
    err: IO[str] = field(default_factory=lambda: sys.stderr)
    log: str = ""


@contextlib.contextmanager
def own_screen() -> Iterator[Screen]:
    """Keep the terminal for ourselves.

    Redirects the file descriptors themselves: Ray's C++ parts and its child processes write to
    them without asking Python.
    """
    handle, log = tempfile.mkstemp(prefix="dec-", suffix=".log")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor in (1, 2):
        os.dup2(handle, descriptor)
    os.close(handle)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
        force=True,
    )
    out, err = (os.fdopen(os.dup(d), "w", buffering=1, encoding="utf-8") for d in saved)
    try:
        yield Screen(out, err, log)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        out.close()
        err.close()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)


def start_ray(config: Config) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises:
        ConfigError: It can't hold the workers that the config asks for.
        TransientError: It can't be reached.
    """
    import ray

    from pipeline.distributed.resources import share_out
    from pipeline.errors import TransientError
    from pipeline.storage import why

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        try:
            if address:
                _require_listener(address)
                ray.init(address=address, log_to_driver=True)
            else:
                ray.init(address="local", include_dashboard=False, log_to_driver=True)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"the cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
            raise TransientError(
                f"{where} cannot be reached: {why(error)}; check that it runs, or unset RAY_ADDRESS"
            ) from error
    share_out(config.execution)


def _require_listener(address: str) -> None:
    """Raise an OSError at once where Ray would try for minutes and then end the process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def stop_ray() -> None:
    """End the session, and the cluster if this process started it."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
