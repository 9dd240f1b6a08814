"""Memory and disks that run out under a run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from faults.ledger import Ledger
from faults.nights import (
    SLICES,
    WIDE_ROWS,
    Night,
    assert_every_row_once,
    ray_processes,
    wide_settings,
)

pytestmark = pytest.mark.faults

MIB = 2**20
ASSIGNER = "MapBatches(Assigner)"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Night:
    """A run that is about to assign; each test goes on with a copy of its lake."""
    folder = tmp_path_factory.mktemp("fitted")
    settings = wide_settings(folder / "wide")
    settings |= {
        "pretrain": {"passes": 1, "min_updates": 0},
        "refine": {"passes": 1, "select": "dec"},
    }
    alone = settings["execution"] | {"workers": 1}  # trains in place, which is faster
    night = Night(folder / "night", {**settings, "execution": alone}, ray_address)
    night.start()
    night.wait_for_stage("assign")
    night.kill()
    night.settings = settings
    return night


def copy_of(fitted: Night, folder: Path, lake: Path, address: str) -> Night:
    """The same run, in another lake and with two workers."""
    shutil.copytree(fitted.lake, lake)
    return Night(folder / "night", {**fitted.settings, "output": str(lake)}, address)


class Disk:
    """A disk of a size of its own, in memory.

    Args:
        path: Folder to mount it at.
        size: Number of bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        path.mkdir()
        self.path = path
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {getattr(error, 'stderr', error)}")

    def fill(self, free: int) -> None:
        """Leave so many bytes."""
        with open(self.path / "ballast", "wb") as file:
            left = shutil.disk_usage(self.path).free - free
            while left > 0:
                left -= file.write(bytes(min(left, MIB)))

    def resize(self, size: int) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,size={size}", str(self.path)], check=True, capture_output=True
        )

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True)


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "output", 64 * MIB)
    yield disk
    disk.unmount()


def test_the_output_disk_is_full_amid_assigning(
    fitted: Night, output: Disk, tmp_path: Path, ray_address: str, ledger: Ledger
) -> None:
    night = copy_of(fitted, tmp_path, output.path / "lake", ray_address)
    night.start()
    night.wait_for_stage("assign")
    output.fill(free=2 * MIB)  # for some of the parts
    ledger.injected("disk full on local output", "assign")
    result = night.finish()
    assert result.code == 6, result.err
    (line,) = result.err.splitlines()
    assert "its disk is full" in line
    assert "bytes are free" in line
    assert "run the same run id again" in line
    folder = night.lake / "runs/night/assignments"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert 0 < len(before) < SLICES
    assert (
        sum(pq.read_metadata(path).num_rows for path in before) == WIDE_ROWS * len(before) / SLICES
    )
    assert night.snapshots() == []

    output.resize(256 * MIB)
    result = night.run()
    assert result.code == 0, result.err
    assert_every_row_once(night)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in folder.iterdir()}.items()
    ledger.survived("disk full on local output", "assign", rows=WIDE_ROWS)


# ------------------------------------------------------------------------------------- memory


class Starvation:
    """Puts assign actors at work where there is no memory; the kernel ends them.

    Args:
        until: Whether to stop; asked again and again.
    """

    def __init__(self, until: Callable[[], bool]) -> None:
        self.starved: set[psutil.Process] = set()
        self._until = until
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        root = Path("/sys/fs/cgroup")
        first = (root / "cgroup.controllers").exists()  # version 2
        self._group = (root if first else root / "memory") / f"dec-test-{os.getpid()}"
        try:
            self._group.mkdir()
            limit = "memory.max" if first else "memory.limit_in_bytes"
            (self._group / limit).write_text(str(4 * MIB))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")

    def __enter__(self) -> Starvation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        psutil.wait_procs(self.starved, timeout=60)
        self._group.rmdir()

    def _watch(self) -> None:
        while not self._over.wait(0.005) and not self._until():
            for process in set(ray_processes(f"{ASSIGNER}).submit")) - self.starved:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    (self._group / "cgroup.procs").write_text(str(process.pid))
                    self.starved.add(process)


def test_two_actors_out_of_memory(
    fitted: Night, tmp_path: Path, ray_address: str, ledger: Ledger
) -> None:
    fault = "two workers out of memory"
    night = copy_of(fitted, tmp_path, tmp_path / "lake", ray_address)
    once = ("--set", "execution.retries=1")
    with Starvation(until=lambda: False) as memory:
        result = night.run(*once)
    assert len(memory.starved) >= 4  # two, and in each of two attempts
    ledger.injected(fault, "assign, for good")
    assert result.code == 6, result.err
    (line,) = result.err.splitlines()
    assert "lack of memory, lower execution.workers=2 to 1, or lower execution.target_s" in line
    assert night.logs().count("assign: retry ") == 1
    assert "assign: one slice at a time on each of 2 actors" in night.logs()
    assert night.snapshots() == []
    ledger.survived(fault, "assign, for good", rows=0)

    # As above, but one slice at a time fits.
    with Starvation(until=lambda: "assign: one slice at a time" in night.log) as memory:
        result = night.run(*once)
    assert len(memory.starved) >= 2
    ledger.injected(fault, "assign, smaller batches")
    assert result.code == 0, result.err
    assert night.logs().count("assign: one slice at a time on each of 2 actors") == 2
    assert_every_row_once(night)
    ledger.survived(fault, "assign, smaller batches", rows=WIDE_ROWS)


# --------------------------------------------------------------------------- the object store


@pytest.fixture
def spilling(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "spilling", 4 * MIB)
    yield disk
    disk.unmount()


@pytest.fixture
def small_store(spilling: Disk) -> Iterator[Cluster]:
    """A Ray with as small an object store as it accepts."""
    arguments = {
        "num_cpus": 4,
        "include_dashboard": False,
        "object_store_memory": 80 * MIB,
        "object_spilling_directory": str(spilling.path),
    }
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


HOARDER = """
import sys, numpy, ray
ray.init(sys.argv[1], log_to_driver=False)
kept = []
try:
    while True:
        kept.append(ray.put(numpy.random.bytes(4 * 2**20)))
        if len(kept) == 40:
            break
except ray.exceptions.RayError as error:
    print(type(error).__name__)
print("full", len(kept), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def hoarder(address: str) -> Iterator[str]:
    """Another driver that fills the object store; yields what it printed when it was full."""
    words = [sys.executable, "-c", HOARDER, address]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said = ""
    while "full" not in said:
        line = process.stdout.readline()
        assert line, "it died"
        said += line
    try:
        yield said
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def test_object_store_and_spilling_folder_full(
    fitted: Night, small_store: Cluster, spilling: Disk, tmp_path: Path, ledger: Ledger
) -> None:
    fault = "no space in the object spilling folder"
    spilling.fill(free=0)
    night = copy_of(fitted, tmp_path, tmp_path / "lake", small_store.address)
    with hoarder(small_store.address) as said:
        assert "OutOfDiskError" in said  # there is room neither in memory nor on the disk
        ledger.injected(fault, "assign")
        result = night.run()
    # No rows go through the object store: the run needs none.
    assert result.code == 0, result.err
    assert_every_row_once(night)
    ledger.survived(fault, "assign", rows=WIDE_ROWS)
