"""``dec submit`` before anything leaves the laptop: what is sent, and what is refused."""

from __future__ import annotations

import http.server
import shlex
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import Dec
from ray.job_submission import JobDetails

from jobs import nightly
from jobs.commands import staging
from jobs.commands.submit import Submission, _exit_code
from pipeline.errors import ConfigError, TransientError

NOBODY = "http://127.0.0.1:9"  # the port of a service that nothing runs any more


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "night.yaml"
    path.write_text("clusters: 3\n")
    return str(path)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    return folder


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_code_travels(tmp_path: Path, config: str, staged: Path) -> None:
    code = tree(
        tmp_path / "code",
        *("mine.py", "package/__init__.py", "package/table.csv", "package/local.py"),
        *(".git/config", "__pycache__/mine.pyc", "mine/pyvenv.cfg", "mine/lib/x.py"),
        *("tests/test_mine.py", "items/shard.parquet", ".env", "server.pem"),
        *("out/snapshots/1.json", "out/runs/r/run.json", "out/assignments.txt"),
        *("notes/a.md", "notes/b.md", "secret/mine.py"),
    )
    (code / ".gitignore").write_text("secret/\n")
    (code / "notes" / ".rayignore").write_text("b.md\n")
    (code / "loop").symlink_to(code)
    name = staging.stage(config, staged, working_dir=str(code), package=False)
    assert name == "night.yaml"
    kept = {"mine.py", "package/__init__.py", "package/table.csv", "package/local.py", "notes/a.md"}
    assert names_in(staged) == kept | {"night.yaml"}


def test_the_package_travels_with_the_lock(config: str, staged: Path) -> None:
    staging.stage(config, staged, working_dir=None, package=True)
    names = names_in(staged)
    assert {"jobs/nightly.py", "pipeline/run.py", "pipeline/stages/pin.py", "night.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_too_large_names_the_largest(
    tmp_path: Path, config: str, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "LARGEST_MIB", 1)
    code = tree(tmp_path / "code", "small.py", "large.bin")
    (code / "large.bin").write_bytes(bytes(2 * 2**20))
    with pytest.raises(
        ConfigError, match=r"2 MiB to upload, more than 1;.*: large\.bin \(2\.0 MiB"
    ):
        staging.stage(config, staged, working_dir=str(code), package=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("jobs/__init__.py",), r"has a folder jobs/, which would hide that of dec-pipeline"),
        ((), r"is not a folder; give the folder of your code"),
    ],
)
def test_wrong_working_dirs(
    tmp_path: Path, config: str, staged: Path, names: tuple[str, ...], message: str
) -> None:
    code = tree(tmp_path / "code", *names)
    with pytest.raises(ConfigError, match=message):
        staging.stage(config, staged, working_dir=str(code), package=False)


def test_no_secret_travels(
    tmp_path: Path, config: str, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-0f1e2d3c")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/somebody/.aws/credentials")
    code = tree(tmp_path / "code", "mine.py")
    (code / "mine.py").write_text("path = '/home/somebody/.aws/credentials'\n")
    staging.stage(config, staged, working_dir=str(code), package=False)
    (code / "mine.py").write_text("key = 'planted-0f1e2d3c'\n")
    with pytest.raises(ConfigError, match=r"mine\.py contains the value of AWS_SECRET_ACCESS_KEY"):
        staging.stage(config, staged, working_dir=str(code), package=False)


def test_the_lock_is_what_is_installed() -> None:
    pins = dict(pin.split("==") for pin in staging.pins())
    assert {"ray", "torch", "pyarrow", "botocore", "faiss-cpu"} <= set(pins)  # and what they need
    for name, version in pins.items():
        assert metadata.version(name).partition("+")[0] == version
    assert not {"dec-pipeline", "pytest", "deltalake"} & set(pins)
    assert not [name for name in pins if name.startswith("nvidia")]
    assert set(dict(pin.split("==") for pin in staging.pins(["delta"]))) >= {*pins, "deltalake"}


def test_the_command_survives_a_shell() -> None:
    override = """source.rename={"a b": "it's $HOME; ok"}"""
    submission = Submission("here/my night.yaml", "2026-01-31", "r1", [override, "clusters=3"])
    python, option, module, *words = shlex.split(submission.command("my night.yaml"))
    assert (python, option, module) == ("python", "-m", "jobs.nightly")
    given = nightly.parser().parse_args(words)
    assert (given.config, given.ds, given.run_id) == ("my night.yaml", "2026-01-31", "r1")
    assert given.set == [override, "clusters=3"]


@pytest.mark.parametrize(
    ("submission", "name"),
    [
        (Submission("configs/nightly.yaml", "2026-01-31"), "nightly-2026-01-31"),
        (Submission("a.yaml", "2026-01-31", nightly=True), "a-2026-01-31-night"),
        (Submission("/a/b/Über uns.v2.yaml"), "ber-uns.v2-undated"),
        (Submission("night.yaml", name="items"), "items-undated"),
        (Submission("___.yaml"), "dec-undated"),
    ],
)
def test_a_night_has_one_id(submission: Submission, name: str) -> None:
    assert submission.id == name


@pytest.fixture
def something_else() -> Iterator[str]:
    """A web server that is not a Ray dashboard."""
    handler = type(
        "Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "no cluster is named; give --address http://HEAD:8265"),
        (("--address", "head:8265"), 2, "--address 'head:8265' must be the URL of the cluster's"),
        (("--address", NOBODY), 6, f"the cluster at {NOBODY} cannot be reached: "),
        (("--address", NOBODY, "--ds", "today"), 2, "--ds 'today' must be a date"),
        (("--address", NOBODY, "--run-id", "../x"), 2, "--run-id '../x' must be letters"),
        (("--address", NOBODY, "--name", "a b"), 2, "--name 'a b' must be letters"),
        (("--address", NOBODY, "--set", "clusters=1"), 2, "clusters=1 "),
        (("--address", NOBODY, "--set", "output=lake"), 2, "output=lake is relative to a folder"),
        (
            ("--address", NOBODY, "--set", "track.tensorboard=b"),
            2,
            "track.tensorboard=b ",
        ),
        (("--address", NOBODY, "--set", "source.path=[s3://b/x, y]"), 2, "source.path=y is "),
        (("--address", NOBODY, "--working-dir", "/nowhere"), 2, "--working-dir /nowhere is not a "),
        (
            ("--address", NOBODY, "--run-id", "planted-0f1e2d"),
            2,
            "the command contains the value of ",
        ),
    ],
)
def test_wrong_on_the_laptop(
    dec: Dec, settings: dict[str, Any], words: tuple[str, ...], code: int, message: str
) -> None:
    result = dec("submit", *words, settings=settings, env={"ANY_TOKEN": "planted-0f1e2d"})
    assert result.code == code
    assert result.err.startswith(f"error: {message}")
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


def test_no_dashboard(dec: Dec, settings: dict[str, Any], something_else: str) -> None:
    result = dec("submit", "--address", something_else, settings=settings)
    assert result.code == 2
    assert result.err.startswith(f"error: {something_else} ")


def ended(status: str, **rest: Any) -> JobDetails:
    return JobDetails(type="SUBMISSION", status=status, entrypoint="", **rest)


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (ended("SUCCEEDED", driver_exit_code=0), 0),
        (ended("FAILED", driver_exit_code=7), 7),
        (ended("FAILED", driver_exit_code=-9), 137),
        (ended("STOPPED"), 130),
    ],
)
def test_exit_codes(info: JobDetails, code: int) -> None:
    assert _exit_code(info, "night", with_log=True) == code


def test_the_jobs_error_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    message = "failed with exit code 3, last available logs (truncated to 20,000 chars):\n"
    message += "12:00:00 pin started\nerror: source.path=s3://x holds no file\n"
    _exit_code(ended("FAILED", driver_exit_code=3, message=message), "night", with_log=True)
    assert capsys.readouterr().err.splitlines() == [
        "error: source.path=s3://x holds no file",
        "night failed: exit code 3",
    ]


def test_lost_jobs() -> None:
    lost = ended("FAILED", message="Job supervisor actor died: …")
    with pytest.raises(TransientError, match="night was lost: Job supervisor actor died"):
        _exit_code(lost, "night", with_log=True)
    never = ended("FAILED", message="pip said no", error_type="RUNTIME_ENV_SETUP_FAILURE")
    with pytest.raises(ConfigError, match="not set up the environment of night: pip said no"):
        _exit_code(never, "night", with_log=True)
