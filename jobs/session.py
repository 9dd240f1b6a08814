"""The Ray session of a command, its terminal, and its signals."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from jobs.ending import ends_within
from jobs.ray_address import check_head, check_ray_settings, wrong_token
from pipeline import logs
from pipeline.config import Config, load_config
from pipeline.distributed.private_ray import listen_locally
from pipeline.engine import Stop
from pipeline.errors import ConfigError, PipelineError, TransientError
from pipeline.storage import s3, why

log = logging.getLogger(__name__)

_STOP_SECONDS = 60.0


def _log_format() -> str:
    """Format of log lines by the environment; "plain" where its value is invalid."""
    with contextlib.suppress(ValueError):
        return logs.log_format()
    return "plain"


@dataclass
class Screen:
    """The terminal, while the output of libraries goes to a file."""

    out: IO[str] = field(default_factory=lambda: sys.stdout)
    err: IO[str] = field(default_factory=lambda: sys.stderr)
    log: str = ""  # path of the file that Ray, its workers and all libraries write to
    how: str = field(default_factory=_log_format)  # format of lines

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        if self.how == "json":
            level = "ERROR" if line.startswith("error: ") else "INFO"
            line = logs.json_line(line, level)
        self.err.write(f"{line}\n")  # one write: other threads write too

    def kept_log(self) -> bytes:
        """Content of the log so far."""
        sys.stdout.flush()
        sys.stderr.flush()
        with open(self.log, "rb") as file:
            content = file.read()
        return logs.as_json_lines(content) if self.how == "json" else content


@contextlib.contextmanager
def own_screen() -> Iterator[Screen]:
    """Redirect the output of libraries to a file; only the given screen writes to the terminal.

    Redirects the file descriptors: Ray's C++ parts and its child processes write to them directly.
    As JSON, our own log lines go to the terminal too, for log collectors.
    """
    how = _log_format()
    handle, log = tempfile.mkstemp(prefix="dec-", suffix=".log")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor in (1, 2):
        os.dup2(handle, descriptor)
    os.close(handle)
    out, err = (
        os.fdopen(
            os.dup(d), "w", buffering=1, encoding=stream.encoding or "utf-8", errors="replace"
        )
        for d, stream in zip(saved, (sys.stdout, sys.stderr), strict=True)
    )
    handlers = [logs.handler(sys.stderr, how)]
    if how == "json":
        handlers.append(logs.handler(err, how))
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # before anything imports Ray
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    try:
        yield Screen(out, err, log)
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
    """Make a Ray that this process starts listen on localhost only; call before Ray is imported.

    Ray runs code for everybody who can connect to it.
    """
    if not os.environ.get("RAY_ADDRESS"):
        listen_locally()


def configured(config_path: str, overrides: Sequence[str]) -> Config:
    """Load a config, and apply its settings of the object store to this process."""
    try:
        logs.log_format()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = load_config(config_path, overrides)
    s3.use(config.storage.model_dump())
    return config


def login() -> str:
    """Name of the user, for logs."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # in a container, a user may have no name
        return "unknown"


def start_ray(config: Config, on_wait: Callable[[str], None]) -> None:
    """Connect to Ray, and wait until it has the resources of the config.

    ``on_wait`` receives a message while this waits for nodes.

    Raises:
        ConfigError: The cluster can never have these resources, or its nodes do not share folders.
        TransientError: It can't be reached.
    """
    import ray

    from pipeline.distributed.resources import check_shared, share_out

    if not ray.is_initialized():
        connect_ray()
        try:
            share_out(config.execution, on_wait)  # later, fewer are enough
            check_shared([config.output, *config.source.locations])
        except ray.exceptions.RayError as error:
            raise TransientError(
                f"the cluster does not answer: {why(error)}; the same run id continues"
            ) from error


def connect_ray() -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine.

    Raises:
        ConfigError: The environment names no cluster, or one that asks for another token.
        TransientError: It can't be reached.
    """
    import ray

    if not ray.is_initialized():
        check_ray_settings()
        address = os.environ.get("RAY_ADDRESS")
        try:
            if address:
                check_head(address)
                # Its nodes do not have this process's environment. They get the object store's
                # address, but no credentials: Ray shows these variables to everybody.
                variables = s3.settings_for_workers()
                environment = {"env_vars": variables} if variables else None
                ray.init(address=address, log_to_driver=True, runtime_env=environment)
            else:
                ray.init(address="local", include_dashboard=False, log_to_driver=True)
        except ray.exceptions.AuthenticationError as error:
            raise wrong_token(address or "local", error) from error
        except PipelineError:
            raise
        except Exception as error:  # Ray's own word for a node that does not start in time
            where = f"the cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
            raise TransientError(
                f"{where} cannot be reached: {why(error)}; check that it runs, or unset RAY_ADDRESS"
            ) from error


def stop_ray() -> None:
    """End the session, and the cluster if this process started it; gives up after a minute.

    Ray's shutdown joins its threads without a limit. Processes that it leaves end with this one.
    """
    ray = sys.modules.get("ray")
    if ray is not None and not ends_within(_STOP_SECONDS, ray.shutdown):
        log.warning("Ray did not stop within %g s; the run is not affected", _STOP_SECONDS)


def listen(stop: Stop | None = None, grace_seconds: int = 0) -> None:
    """Turn Ctrl-C and a scheduler's SIGTERM into a KeyboardInterrupt.

    Work that heeds ``stop`` has ``grace_seconds`` after SIGTERM to end by itself; a second signal
    interrupts it.
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
