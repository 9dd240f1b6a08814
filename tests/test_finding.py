"""Which files of a location are input: names, contents, links, and where the output may lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.artifacts.inputs import LeftOutFiles, Manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, InputError
from pipeline.input.pinning import list_input, list_shards, pin
from pipeline.storage import parquet_bytes
from pipeline.storage.finding import find_parquet, is_hidden

PARQUET = parquet_bytes(pa.table({"id": [1, 2], "x": [1.0, 2.0]}))


def put(folder: Path, *names: str, content: bytes = PARQUET) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def found(location: Any) -> list[str]:
    return [file.name for file in find_parquet(str(location)).files]


def left_out(location: Any) -> dict[str, list[str]]:
    return {reason: sorted(names) for reason, names in find_parquet(str(location)).left_out.items()}


def config(path: Any, output: Any = "unused", **source: Any) -> Config:
    path = [str(p) for p in path] if isinstance(path, list) else str(path)
    source = {"path": path, "features": ["x"], **source}
    return Config.model_validate({"source": source, "output": str(output), "clusters": 2})


# ----------------------------------------------------------------------------------------- names

TRINO = "20260101_000000_00000_abcde"


@pytest.mark.parametrize(
    "name",
    [
        *("b.parquet", "b.PARQUET", "b.Parquet", "b.parq", "b.pq", "b.pqt", "b.PQT"),
        *("b.snappy.parquet", "b.gz.parquet", "b.parquet.gz", "b.parquet.SNAPPY", "b.parquet.zst"),
        *("_day=2/b.parquet", "day=2/_x=1/b.parquet", "ü b%41?#.parquet", "a[1]/b*.parquet"),
    ],
)
def test_names_that_say_parquet(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.parquet", name)
    assert found(tmp_path) == sorted(["a.parquet", name])
    assert found(tmp_path / name) == [Path(name).name]


@pytest.mark.parametrize("name", [TRINO, "000000_0", "b.dat", "b.parquet.1", "b.parquet.bak", "ü"])
def test_names_that_do_not(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, f"day=2/{name}")
    both = sorted([name, f"day=2/{name}"])
    assert found(tmp_path) == both  # alone, they are what the folder holds
    put(tmp_path, "a.parquet")
    with pytest.raises(InputError) as error:
        find_parquet(str(tmp_path))
    for words in (
        "Parquet without names that say so: 2 files",
        name,
        "beside 1 with",
        "a.parquet",
        "/**/*;",
    ):
        assert words in str(error.value)
    # What the message says works: to take them, or to leave them.
    assert found(tmp_path / "**/*") == sorted(["a.parquet", *both])
    assert found(tmp_path / "**/*.parquet") == ["a.parquet"]
    assert found(tmp_path / "*") == sorted(["a.parquet", *both])
    assert found(tmp_path / name) == [name]
    put(tmp_path, "day=2/c.parquet")
    assert len(found(tmp_path / "**/*")) == 4
    with pytest.raises(InputError, match="without names that say so: 1 files"):
        find_parquet(str(tmp_path / "*"))  # day=2 is a folder that is named, and holds both


def test_files_that_hold_no_parquet_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    put(tmp_path, "notes.txt", "day=1/table.csv", content=b"longer than the magic bytes")
    put(tmp_path, "_day=1/empty", content=b"")
    os.mkfifo(tmp_path / "pipe")  # never opened: that would wait for a writer
    for location in (tmp_path, tmp_path / "**/*"):
        assert found(location) == ["a.parquet"]
        assert left_out(location) == {
            "not_parquet": ["_day=1/empty", "day=1/table.csv", "notes.txt", "pipe"]
        }


def test_names_of_other_formats_are_looked_into_where_a_glob_names_them(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "b.txt")
    assert (found(tmp_path), left_out(tmp_path)) == (["a.parquet"], {"not_parquet": ["b.txt"]})
    assert found(tmp_path / "*") == ["a.parquet", "b.txt"]
    assert found(tmp_path / "b.txt") == ["b.txt"]


def test_damaged_files_are_not_left_out(tmp_path: Path) -> None:
    put(tmp_path, "cut-off", content=PARQUET[:-7])
    put(tmp_path, "no-head", content=b"...." + PARQUET[4:])
    put(tmp_path, "encrypted", content=b"PARE" + b"." * 20 + b"PARE")
    assert found(tmp_path) == ["cut-off", "encrypted", "no-head"]
    with pytest.raises(InputError, match="cut-off cannot be read"):
        pin(config(tmp_path), list_shards(config(tmp_path)))


SPARK = [
    *("_SUCCESS", "_metadata", "_common_metadata", ".part-0.snappy.parquet.crc"),
    *("_temporary/0/part-1.parquet", "_started_17", ".spark-staging-1/day=1/part-2.parquet"),
    *("_delta_log/00000000000000000010.checkpoint.parquet", "x.parquet._COPYING_", "y.parquet.tmp"),
    *("day=1/_temporary/part-3.parquet", "day=1/_SUCCESS"),
]


def test_leftovers_of_writers_are_ignored_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "day=1/b.parquet", *SPARK)
    for location in (tmp_path, tmp_path / "**", tmp_path / "**/*"):
        assert found(location) == ["a.parquet", "day=1/b.parquet"]
        hidden = set(left_out(location)["hidden"])
        assert {name for name in SPARK if not name.startswith(".")} <= hidden <= set(SPARK)
    assert left_out(tmp_path) == {"hidden": sorted(SPARK)}


def test_glob_that_means_hidden_names(tmp_path: Path) -> None:
    put(tmp_path, "_old/a.parquet", "_old/_b.parquet", ".c.parquet", "d.parquet")
    assert found(tmp_path / "_o*/*.parquet") == ["_old/a.parquet"]
    assert found(tmp_path / "_o*/_*.parquet") == ["_old/_b.parquet"]
    assert found(tmp_path / ".*.parquet") == [".c.parquet"]
    assert found(tmp_path / "_old") == ["a.parquet"]
    assert not is_hidden("_x=1/a.parquet")
    assert is_hidden("._x=1/a.parquet")


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    put(tmp_path, "a[1]/b?.parquet", "a1/b1.parquet")
    assert found(tmp_path / "a[1]") == ["b?.parquet"]
    assert found(tmp_path / "a[1]/*.parquet") == ["b?.parquet"]
    assert found(tmp_path / "a[1]/b?.parquet") == ["b?.parquet"]
    assert found(tmp_path / "a[12]/*.parquet") == ["a1/b1.parquet"]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.parquet")).write_bytes(PARQUET)
    with pytest.raises(InputError, match=r"source\.path=.*udcff\.parquet' has a name that is not"):
        list_shards(config(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "day=1/b.parquet", "_old/c.parquet")
    for name in ("day=1", "_old"):
        (tmp_path / name).chmod(0)
    with pytest.raises(InputError, match=r"cannot be read: .*/day=1: permission denied"):
        list_shards(config(tmp_path))
    (tmp_path / "day=1").chmod(0o700)
    assert found(tmp_path) == ["a.parquet", "day=1/b.parquet"]


def test_left_out_files_are_in_the_listing_and_the_manifest(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", *(f"_old/{n}.parquet" for n in range(5)))
    put(tmp_path, "b.txt", content=b"no Parquet at all")
    os.link(tmp_path / "a.parquet", tmp_path / "c.parquet")
    listing = list_input(config([tmp_path, tmp_path / "*"]))
    assert [str(files) for files in listing.left_out] == [
        "5 hidden or unfinished (_old/0.parquet, _old/1.parquet, _old/2.parquet, …)",
        "1 not Parquet (b.txt)",
        "1 another path of a file that is read (c.parquet)",
    ]
    (hidden, *_) = listing.left_out
    assert LeftOutFiles.model_validate(hidden.model_dump()) == hidden
    assert Manifest.model_fields["left_out"].default == ()


# ----------------------------------------------------------------------------------------- links


def test_links_that_run_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "in/day=1/a.parquet", "in/day=2/b.parquet")
    for link, target in {
        "day=1/up": "..",
        "day=2/up": "../../in",
        "self": ".",
        "o": "..",
    }.items():
        (tmp_path / "in" / link).symlink_to(target)
    both = ["day=1/a.parquet", "day=2/b.parquet"]
    for pattern in ("in", "in/", "in/*", "in/**", "in/**/*.parquet", "in/*/*"):
        assert found(tmp_path / pattern) == both
    assert found(f"{tmp_path}/in/day=1/up") == both


def test_linked_folder_keeps_its_real_path(tmp_path: Path) -> None:
    put(tmp_path, "in/day=2/a.parquet", "far/b.parquet")
    (tmp_path / "in/day=1").mkdir()
    (tmp_path / "in/a-first").symlink_to("day=2")
    (tmp_path / "in/day=3").symlink_to(tmp_path / "far")
    assert found(tmp_path / "in") == ["day=2/a.parquet", "day=3/b.parquet"]
    assert found(tmp_path / "in/**/*.parquet") == ["day=2/a.parquet", "day=3/b.parquet"]
    assert found(tmp_path / "in/a-first") == ["a.parquet"]  # named itself


def test_one_file_by_several_paths(tmp_path: Path) -> None:
    put(tmp_path, "in/a.parquet", "in/b.parquet")
    (tmp_path / "in/0-link.parquet").symlink_to("a.parquet")
    os.link(tmp_path / "in/b.parquet", tmp_path / "in/c.parquet")
    (tmp_path / "other").symlink_to("in")
    assert found(tmp_path / "in") == ["a.parquet", "b.parquet"]
    assert left_out(tmp_path / "in") == {"same_file": ["0-link.parquet", "c.parquet"]}
    everything = [tmp_path / "in", tmp_path / "other/*.parquet", tmp_path / "in/../in/a.parquet"]
    listing = list_input(config(everything))
    assert [file.name for file in listing.shards] == ["a.parquet", "b.parquet"]
    (same,) = listing.left_out
    assert same.reason == "same_file"
    assert "0-link.parquet" in same.examples


def test_files_of_one_number_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems number files anew, so that a number comes twice."""
    put(tmp_path, "a.parquet")
    put(tmp_path, "b.parquet", content=parquet_bytes(pa.table({"id": [3], "x": [3.0]})))
    stat = os.stat

    def same(path: Any, **options: Any) -> os.stat_result:
        values = list(stat(path, **options))
        values[1] = 7
        return os.stat_result(values, {"st_mtime_ns": stat(path, **options).st_mtime_ns})

    files = [os.stat_result(same(tmp_path / name)) for name in ("a.parquet", "b.parquet")]
    assert files[0].st_ino == files[1].st_ino
    from pipeline.storage import found_locally

    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    first, second = (found_locally(p, str(tmp_path), same(p)) for p in paths)
    assert first.identity != second.identity


@pytest.mark.parametrize("name", ["b.parquet", "day=2", "no-suffix"])
@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_broken_link_is_named(tmp_path: Path, name: str, pattern: str) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / name).symlink_to("gone/away")
    with pytest.raises(InputError) as error:
        list_shards(config(tmp_path / pattern))
    assert f"{tmp_path / name} is a link to gone/away, which does not exist" in str(error.value)
    assert "remove the link" in str(error.value)


def test_other_broken_links(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "_old").symlink_to("gone")  # left out for its name
    assert found(tmp_path) == found(tmp_path / "*") == ["a.parquet"]
    with pytest.raises(InputError, match="_old is a link to gone, which does not exist"):
        find_parquet(str(tmp_path / "_old"))
    (tmp_path / "one.parquet").symlink_to("two.parquet")
    (tmp_path / "two.parquet").symlink_to("one.parquet")
    with pytest.raises(InputError, match=r"one\.parquet is a link to two\.parquet, .* circle"):
        find_parquet(str(tmp_path))
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_parquet("/dev/null")


# ---------------------------------------------------------------------------- where the output is


def lies(tmp_path: Path, output: str, path: Any) -> str:
    paths = path if isinstance(path, list) else [path]
    try:
        list_shards(config([tmp_path / p for p in paths], tmp_path / output))
    except ConfigError as error:
        return "inside" if "lies in source.path" in str(error) else "above"
    return "apart"


@pytest.mark.parametrize(
    ("output", "path", "expected"),
    [
        ("in/lake", "in", "inside"),
        ("in", "in", "inside"),
        ("in/day=1/lake", "in", "inside"),
        ("in/_lake", "in", "inside"),
        ("in-2", "in", "apart"),
        ("lake", "in", "apart"),
        ("lake", ["in", "in2"], "apart"),
        ("in2/lake", ["in", "in2"], "inside"),
        # Through globs.
        ("in/lake", "in/*", "inside"),
        ("in/lake", "in/**", "inside"),
        ("in/lake", "in/**/*.parquet", "inside"),
        ("in/lake", "in/*/*.parquet", "inside"),  # as footers/*.parquet
        ("in/lake", "in/l*/*/*/*/*.parquet", "inside"),
        ("in/lake", "in/*/runs/*/assignments/*.parquet", "inside"),
        ("in/day=1/lake", "in/day=*", "inside"),
        ("in/lake", "in/*.parquet", "apart"),
        ("in/lake", "in/day=*/*.parquet", "apart"),
        ("in/lake", "*/*.parquet", "apart"),
        ("lake", "in/*", "apart"),
        ("x/lake", "*/day=1/*.parquet", "apart"),  # a lake has no such folder
        # Through links.
        ("lake", "linked", "inside"),  # a link in it leads to all of these folders
        ("real/lake", "in3", "inside"),
        ("link-to-in/lake", "in", "inside"),
        ("link-to-in/lake", "in/*", "inside"),
        ("real/lake", "in3/*/*/*.parquet", "inside"),
        ("real/lake", "in3/*.parquet", "apart"),
        # Above.
        ("", "in", "above"),
        ("", "in/*.parquet", "above"),
        ("in", "in/a.parquet", "above"),
        ("link-to-all", "in", "above"),
        ("real", "in3", "inside"),
        ("real", "file-link.parquet", "above"),
    ],
)
def test_output_in_the_input_or_above_it(
    tmp_path: Path, output: str, path: Any, expected: str
) -> None:
    put(tmp_path, "in/a.parquet", "in/day=1/b.parquet", "in2/c.parquet", "real/d.parquet")
    put(tmp_path, "in3/e.parquet", "linked/f.parquet")
    (tmp_path / "in3/link").symlink_to("../real")
    (tmp_path / "linked/all").symlink_to("..")
    (tmp_path / "link-to-in").symlink_to("in")
    (tmp_path / "link-to-all").symlink_to(".")
    (tmp_path / "file-link.parquet").symlink_to("real/d.parquet")
    before = sorted(tmp_path.rglob("*"))
    assert lies(tmp_path, output, path) == expected  # at the first run: there is no output yet
    assert sorted(tmp_path.rglob("*")) == before
    if not (tmp_path / output).exists():
        (tmp_path / output).mkdir(parents=True)
        assert lies(tmp_path, output, path) == expected


def test_input_in_a_store_and_output_here(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    assert len(list_shards(config(tmp_path, "s3://bucket/lake"))) == 1
