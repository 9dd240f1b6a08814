"""What is uploaded with a job: a small folder, and versions of packages."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pipeline.credentials import secrets_of
from pipeline.distributed.private_ray import ignored_by_rayignore
from pipeline.errors import ConfigError

# Code is small; data belongs on storage that all nodes can read.
LARGEST_MIB = 64
_LISTED_FILES = 5

# In addition to .gitignore and .rayignore.
_EXCLUDED = (
    # version control, editors, environments, caches, builds
    *(".git", ".hg", ".svn", ".idea", ".vscode", ".venv", "venv", ".tox", ".nox", "node_modules"),
    *("__pycache__", "*.pyc", ".*_cache", ".cache", ".ipynb_checkpoints", "*.egg-info"),
    *("build", "dist", ".gitignore", ".rayignore"),
    # tests and data
    *("tests", "*.parquet", "*.arrow", "*.feather", "*.orc", "*.npy", "*.npz", "*.h5", "*.hdf5"),
    *("*.safetensors", "*.pt", "*.pth", "*.onnx", "*.pkl", "*.db", "*.sqlite", "*.sqlite3"),
    *("*.zip", "*.tar", "*.gz", "*.zst", "*.whl", "*.log", "wandb", "mlruns"),
    # credentials
    *(".env", ".env.*", ".aws", ".ssh", ".kube", ".docker", ".netrc", ".pypirc"),
    ".git-credentials",
    *("*.pem", "*.key", "*.p12", "id_rsa*", "id_ed25519*", "credentials", "credentials.*"),
)
# torch pins its own, which depend on the machine.
_LEFT_TO_TORCH = re.compile(r"^(nvidia|cuda|triton)\b")


def stage(config_path: str, folder: Path, *, working_dir: str | None, package: bool) -> str:
    """Fill an empty folder with the files of the job; returns the config's name in it.

    ``working_dir`` has the user's code; ``package`` includes dec-pipeline itself.

    Raises:
        ConfigError: The working directory can't be read, is too large, or contains a credential.
    """
    if working_dir is not None:
        _copy_code(Path(working_dir), folder)
    name = Path(config_path).name
    shutil.copyfile(config_path, folder / name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    refuse_secrets((str(path.relative_to(folder)), path.read_bytes()) for path in files)
    if package:
        import jobs
        import pipeline

        for module in (pipeline, jobs):
            source = Path(module.__path__[0])
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / source.name, ignore=ignored)
    return name


def _copy_code(working_dir: Path, folder: Path) -> None:
    if not working_dir.is_dir():
        raise ConfigError(
            f"--working-dir {working_dir} is not a folder; give the folder of your code"
        )
    try:
        files = sorted(_files(working_dir, [_excluded]))
        sizes = {path: path.stat().st_size for path in files}
        if sum(sizes.values()) > LARGEST_MIB * 2**20:
            largest = sorted(files, key=sizes.__getitem__, reverse=True)[:_LISTED_FILES]
            named = ", ".join(
                f"{path.relative_to(working_dir)} ({sizes[path] / 2**20:.1f} MiB)"
                for path in largest
            )
            raise ConfigError(
                f"--working-dir {working_dir} has {sum(sizes.values()) / 2**20:.0f} MiB to upload, "
                f"more than {LARGEST_MIB}; exclude data in its .rayignore. Largest: {named}"
            )
        for path in files:
            relative = path.relative_to(working_dir)
            if relative.parts[0] in ("jobs", "pipeline"):
                raise ConfigError(
                    f"--working-dir {working_dir} has a folder {relative.parts[0]}/, which would "
                    "hide that of dec-pipeline; rename it, or exclude it in .rayignore. "
                    "To upload the dec-pipeline of this machine: --environment lock"
                )
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)
    except OSError as error:
        raise ConfigError(
            f"--working-dir {working_dir} cannot be read: {error.filename}: {error.strerror}"
        ) from None


def _files(folder: Path, excluded: Sequence[Callable[[Path], bool]]) -> Iterator[Path]:
    """Files below a folder that no rule excludes; links to folders are not followed."""
    rules = [*excluded, *ignored_by_rayignore(folder)]
    for path in folder.iterdir():
        if any(rule(path) for rule in rules):
            continue
        if path.is_dir():
            if not path.is_symlink():
                yield from _files(path, rules)
        elif path.is_file():
            yield path


def _excluded(path: Path) -> bool:
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in _EXCLUDED):
        return True
    environment = (path / "pyvenv.cfg").exists()  # whatever it is called
    lake = (path / "snapshots").is_dir() and (path / "runs").is_dir()
    return environment or lake


def refuse_secrets(sent: Iterable[tuple[str, bytes]]) -> None:
    """Raise a ConfigError if an upload contains a secret of this process's environment.

    Ray shows a job's files, command and metadata to everybody who can open its dashboard.
    """
    secrets = {name: value.encode() for name, value in secrets_of(os.environ).items()}
    for what, content in sent:
        for name, value in secrets.items():
            if value in content:
                raise ConfigError(
                    f"{what} contains the value of {name}, which must not be uploaded; remove it: "
                    "the cluster's nodes have credentials of their own"
                )


def pins(extras: Sequence[str] = ()) -> list[str]:
    """``name==version`` of all dependencies of dec-pipeline, as installed here.

    Nodes that have these versions install nothing.

    Raises:
        ConfigError: dec-pipeline or one of them is not installed.
    """
    from packaging.requirements import Requirement

    versions: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()

    def add(name: str, wanted: tuple[str, ...]) -> None:
        if (name, wanted) in seen or _LEFT_TO_TORCH.match(name):
            return
        seen.add((name, wanted))
        distribution = _distribution(name)
        versions[name] = distribution.version.partition("+")[0]  # 2.13.0+cpu is 2.13.0 elsewhere
        for line in distribution.requires or ():
            required = Requirement(line)
            marker = required.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *wanted)):
                canonical = re.sub(r"[-_.]+", "-", required.name).lower()
                add(canonical, tuple(sorted(required.extras)))

    add("dec-pipeline", tuple(sorted(extras)))
    del versions["dec-pipeline"]  # uploaded as a folder
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


@functools.cache
def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"--environment lock needs the versions that are installed here, and {name} is not "
            "installed; pip install dec-pipeline with the extras that the config needs"
        ) from None
