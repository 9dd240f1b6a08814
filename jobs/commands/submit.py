"""``dec submit``: a run as a job on a remote Ray cluster.

There is one submission id for each pipeline, ds and command, so that Ray refuses a second
submission while the first one runs; after that, the next one resumes the run
(infra/decisions/0018-one-submission-id-for-one-night.md).
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pipeline
from jobs.arguments import checked_ds, checked_run_id
from jobs.commands import staging
from jobs.job_server import JobServer, first_line
from pipeline.artifacts.records import fingerprint_of
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, Interrupted, TransientError
from pipeline.schema import NAME_PATTERN

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Environment = Literal["cluster", "lock"]

_SETUP_SECONDS = 900  # Ray's own limit for the start of a job
_STOP_SECONDS = 60  # for a checkpoint after SIGTERM; Ray gives three


@dataclass(frozen=True)
class Submission:
    """Options of ``dec submit``."""

    config_path: str
    ds: str | None = None
    run_id: str | None = None  # id of the run; None: the job derives it
    overrides: Sequence[str] = ()
    name: str | None = None  # name of the pipeline; None: the file's
    # Source of the packages: the nodes' installation, or this machine's versions.
    environment: Environment = "cluster"
    working_dir: str | None = None
    nightly: bool = False

    @property
    def pipeline_name(self) -> str:
        """Name of the pipeline, as part of ids."""
        if self.name is None:
            stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.config_path).stem)
            return stem.strip("-._")[:100] or "dec"
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise ConfigError(
                f"--name {self.name!r} must be letters, digits, '.', '_' and '-', and start with "
                "a letter or digit"
            )
        return self.name

    @property
    def id(self) -> str:
        """The same for every submission of the same night; `dec run` of its date has another."""
        return f"{self.pipeline_name}-{checked_ds(self.ds)}" + "-night" * self.nightly

    def command(self, config_name: str) -> str:
        """Shell command of the job, in its working directory."""
        words = ["python", "-m", "jobs.nightly", "--config", config_name]
        words += ["--ds", self.ds] if self.ds else []
        words += ["--run-id", self.run_id] if self.run_id else []
        words += ["--by-schedule"] if self.nightly else []
        for override in self.overrides:
            words += ["--set", override]
        return shlex.join(words)


def submit_night(
    submission: Submission,
    *,
    address: str | None,
    wait: bool = False,
    follow: bool = False,
    as_json: bool = False,
) -> int:
    """Submit a run to a cluster, and optionally wait for its end.

    ``follow`` waits and prints the job's log, with ``as_json`` to standard error.

    Returns:
        0 when the job is submitted; with ``wait`` or ``follow`` its own exit code, 128 + n if
        signal n ended it, and 130 if it was stopped or Ctrl-C ended the waiting.

    Raises:
        ConfigError: The config, the address or the cluster's environment is wrong.
        LeaseHeld: The same pipeline and ds runs on this cluster.
        TransientError: The cluster can't be reached, or has lost the job.
    """
    # Local errors show before anything is sent.
    config = load_config(submission.config_path, submission.overrides)
    checked_run_id(submission.run_id)
    if submission.nightly and submission.ds is None:
        raise ConfigError("--nightly needs --ds, the date of the night")
    _refuse_relative(config)
    metadata = {
        "pipeline": submission.pipeline_name,
        "ds": checked_ds(submission.ds),
        "version": pipeline.__version__,
        "config": fingerprint_of(config.result_settings()),
    }
    if submission.run_id:
        metadata["run_id"] = submission.run_id
    with tempfile.TemporaryDirectory(prefix="dec-submit-") as folder:
        lock = submission.environment == "lock"
        config_name = staging.stage(
            submission.config_path, Path(folder), working_dir=submission.working_dir, package=lock
        )
        runtime_env: dict[str, Any] = {
            "working_dir": folder,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
            "config": {"setup_timeout_seconds": _SETUP_SECONDS},
        }
        if lock:
            extras = {"delta", "iceberg"} & {config.lake.format}
            extras |= {name for name, tracker in config.track if tracker is not None}
            runtime_env["pip"] = staging.pins(sorted(extras))
        command = submission.command(config_name)
        staging.refuse_secrets([("the command", command.encode())])
        server = JobServer(address)
        log_start = server.submit(submission.id, command, runtime_env, metadata)
    outcome: dict[str, Any] = {"submission_id": submission.id, "address": server.address}
    out = sys.stderr if as_json else sys.stdout
    print(f"submitted {submission.id} to {server.address}", file=out, flush=True)
    for line in _next_steps(submission.id, server.address) if not (wait or follow) else ():
        print(line, file=out)
    code = 0
    if wait or follow:
        try:
            info = server.wait(submission.id, out if follow else None, log_start)
        except KeyboardInterrupt:
            print(f"\nleft {submission.id}, which keeps running.", file=sys.stderr)
            for line in _next_steps(submission.id, server.address):
                print(line, file=sys.stderr)
            return Interrupted.exit_code
        code = _exit_code(info, submission.id, with_log=not follow)
        outcome |= {"status": info.status.value, "exit_code": code}
    if as_json:
        print(json.dumps(outcome))
    return code


def _refuse_relative(config: Config) -> None:
    """Refuse relative paths: they would be below the job's temporary folder."""
    inputs = [("source.path", path) for path in config.source.locations]
    outputs = [("output", config.output)]
    if config.track.tensorboard:
        outputs.append(("track.tensorboard", config.track.tensorboard))
    if config.track.openlineage:
        outputs.append(("track.openlineage.to", config.track.openlineage.to))
    for name, path in (*inputs, *outputs):
        if "://" not in path and not Path(path).is_absolute():
            raise ConfigError(
                f"{name}={path} is relative to a folder of this machine, but the job runs on the "
                "cluster; give s3://…, or an absolute path on storage that all nodes share"
            )


def _next_steps(submission_id: str, address: str) -> list[str]:
    return [
        f"  log:      ray job logs --address {address} --follow {submission_id}",
        f"  status:   ray job status --address {address} {submission_id}",
        f"  stop:     ray job stop --address {address} {submission_id}",
    ]


# Ray's error_type of a job that cannot succeed; others are worth a retry.
_NOT_SET_UP = "RUNTIME_ENV_SETUP_FAILURE"


def _exit_code(info: JobDetails, submission_id: str, *, with_log: bool) -> int:
    """The job's exit code; prints how it ended.

    Raises:
        ConfigError: The cluster could not set up its environment.
        TransientError: The job was lost, or never started.
    """
    status, code, message = info.status.value, info.driver_exit_code, info.message or ""
    if status == "SUCCEEDED":
        print(f"{submission_id} succeeded", file=sys.stderr)
        return 0
    if status == "STOPPED":
        print(f"{submission_id} was stopped; submit again to resume it", file=sys.stderr)
        return Interrupted.exit_code
    if code is None:
        reason = first_line(message) or "no reason given"
        if info.error_type == _NOT_SET_UP:
            raise ConfigError(
                f"the cluster could not set up the environment of {submission_id}: {reason}"
            )
        raise TransientError(f"{submission_id} was lost: {reason}; submit again to resume the run")
    if with_log:
        log = message.partition("chars):\n")[2].splitlines()
        for line in [line for line in log if line.startswith("error: ")] or log:
            print(line, file=sys.stderr)
    outcome = f"exit code {code}"
    if code < 0:
        outcome = f"{signal.Signals(-code).name}; its node may have run out of memory"
        code = 128 - code
    if code == 127 or re.search(r"No module named '?(jobs|pipeline)\b", message):
        outcome += (
            ": its nodes lack dec-pipeline; use an image that has it (infra/docker), or "
            "--environment lock"
        )
    print(f"{submission_id} failed: {outcome}", file=sys.stderr)
    return code
