"""A Ray session, and a screen that only we write to."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from jobs.ending import ends_within
from pipeline import logs
from pipeline.config import Config, load_config
from pipeline.distributed.private_ray import listen_locally
from pipeline.engine import Stop
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

_STOP_SECONDS = 60.0


@dataclass
class Screen:
    """The terminal, while everything else that is printed goes to a file.

    Attributes:
        out: What was standard output.
        err: What was standard error.
        log: The file that Ray, its workers and every library write to now.
        how: The format of lines.
    """

    out: IO[str] = field(default_factory=lambda: sys.stdout)
    err: IO[str] = field(default_factory=lambda: sys.stderr)
    log: str = ""
    how: str = "plain"

    def say(self, line: str) -> None:
        """A line for whoever looks."""
        if self.how == "json":
            level = "ERROR" if line.startswith("error: ") else "INFO"
            line = logs.json_line(line, level)
        self.err.write(f"{line}\n")  # at once: other threads write too

    def kept_log(self) -> bytes:
        """What went to the log so far."""
        sys.stdout.flush()
        sys.stderr.flush()
        with open(self.log, "rb") as file:
            content = file.read()
        return logs.as_json_lines(content) if self.how == "json" else content


def wanted_format() -> str:
    """The format of log lines that the environment asks for; "plain" where it asks for nonsense."""
    with contextlib.suppress(ValueError):
        return logs.log_format()
    return "plain"


@contextlib.contextmanager
def own_screen(how: str = "plain") -> Iterator[Screen]:
    """Keep the terminal for ourselves.

    Redirects the file descriptors themselves: Ray's C++ parts and its child processes write to
    them without asking Python.

    Args:
        how: The format of log lines. As "json", our own go to the screen too: all of what a
            collector reads there is JSON, and none of it is missing.
    """
    handle, log = tempfile.mkstemp(prefix="dec-", suffix=".log")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor in (1, 2):
        os.dup2(handle, descriptor)
    os.close(handle)
    out, err = (os.fdopen(os.dup(d), "w", buffering=1, encoding="utf-8") for d in saved)
    handlers = [logs.handler(sys.stderr, how)]
    if how == "json":  # for whoever collects what the job prints
        handlers.append(logs.handler(err, how))
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # before anything imports Ray
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    try:
        yield Screen(out, err, log, how)
    finally:
        for handler in handlers[1:]:
            logging.getLogger().removeHandler(handler)
        sys.stdout.flush()
        sys.stderr.flush()
        out.close()
        err.close()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)


def keep_to_this_machine() -> None:
    """Let a Ray that this process starts listen to this machine alone, not to its network.

    Ray runs the code of whoever reaches it. It knows this mode for laptops, and looks for it when
    it is imported; a cluster that RAY_ADDRESS names is none of our making.
    """
    if not os.environ.get("RAY_ADDRESS"):
        listen_locally()


def configured(config_path: str, overrides: Sequence[str]) -> Config:
    """Load a config, and talk to the object store as it says from now on."""
    from pipeline.storage import s3

    try:
        logs.log_format()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = load_config(config_path, overrides)
    s3.use(config.storage.model_dump())
    return config


def login() -> str:
    """Who works here, for a log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user that no password file knows, as in containers
        return "somebody without a login"


def start_ray(config: Config, on_wait: Callable[[str], None]) -> None:
    """Have a Ray that holds what the config asks for.

    Args:
        config: What it must hold, and where input and output are.
        on_wait: Told in one line that nodes are awaited.

    Raises:
        ConfigError: It can never hold what the config asks for, or its nodes do not share folders.
        TransientError: It can't be reached.
    """
    import ray

    from pipeline.distributed.resources import check_shared, share_out
    from pipeline.errors import TransientError
    from pipeline.storage import why

    if not ray.is_initialized():
        connect_ray()
        path = config.source.path
        try:
            share_out(config.execution, on_wait)  # later it goes on with fewer, if nodes are lost
            check_shared([config.output, *([path] if isinstance(path, str) else path)])
        except ray.exceptions.RayError as error:
            raise TransientError(
                f"the cluster does not answer: {why(error)}; the same run id continues"
            ) from error


def connect_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises:
        TransientError: It can't be reached.
    """
    import ray

    from pipeline.errors import TransientError
    from pipeline.storage import s3, why

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        try:
            if address:
                _require_listener(address)
                # Its nodes know nothing of this process's environment. Where the object store is,
                # they are told; credentials they must have, for Ray shows this to everybody.
                told = s3.settings_for_workers()
                environment = {"env_vars": told} if told else None
                ray.init(address=address, log_to_driver=True, runtime_env=environment)
            else:
                ray.init(address="local", include_dashboard=False, log_to_driver=True)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"the cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
            raise TransientError(
                f"{where} cannot be reached: {why(error)}; check that it runs, or unset RAY_ADDRESS"
            ) from error


def _require_listener(address: str) -> None:
    """Raise an OSError at once where Ray would try for minutes and then end the process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def stop_ray() -> None:
    """End the session, and the cluster if this process started it; gives up after a minute.

    Ray joins threads that wait for answers of its own processes, and has no limit for that. What it
    started ends with this process at the latest.
    """
    ray = sys.modules.get("ray")
    if ray is not None and not ends_within(_STOP_SECONDS, ray.shutdown):
        log.warning("Ray did not stop within %g s; the run is not affected", _STOP_SECONDS)


def listen(stop: Stop | None = None, grace_seconds: int = 0) -> None:
    """Let Ctrl-C and a scheduler's SIGTERM end the run in the same orderly way.

    Ctrl-C does at once. After SIGTERM, work that heeds ``stop`` has ``grace_seconds`` to end by
    itself; a second signal interrupts it, as it does all other work.
    """

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def leave(*_: object) -> None:
        if stop is None or stop.requested or not stop.heeded:
            interrupt()
        else:
            stop.requested = True
            signal.setitimer(signal.ITIMER_REAL, grace_seconds)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGTERM, leave)
