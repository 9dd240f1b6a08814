"""Find the Parquet files at a location: a file, a folder or a glob, local or s3://."""

from __future__ import annotations

import errno
import fnmatch
import glob
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.locations import S3_SCHEME
from pipeline.storage import FoundFile, absolute, found_locally, found_on_s3, s3
from pipeline.storage.retries import answers_of

# Also in capitals, and with the codec behind as some writers have it.
_PARQUET_NAME = re.compile(
    r"\.(parquet|parq|pqt|pq)(\.(gz|gzip|snappy|zst|zstd|lz4|br|lzo))?$", re.I
)
# Files that lie beside a table; where only their folder is named, they are not looked into.
_OTHER_NAME = re.compile(
    r"\.(txt|csv|tsv|jsonl?|ndjson|md|log|xml|ya?ml|html?|pdf|py|sql|orc|avro)$", re.I
)
# Files that a writer has not finished.
_UNFINISHED = (".tmp", ".inprogress", "._COPYING_")
_MAGIC = (b"PAR1", b"PARE")  # PARE: the footer is encrypted
_SMALLEST = 12  # magic, length of the footer, magic
_READERS = 16
_EXAMPLES = 3

Identity = tuple[int, int]  # device and inode of a folder
Reason = Literal["hidden", "not_parquet", "same_file"]


@dataclass
class Found:
    """What was found at a location."""

    files: list[FoundFile] = field(default_factory=list)
    # Names of files that are left out, by the reason.
    left_out: dict[Reason, set[str]] = field(default_factory=dict)
    # Local folders that were searched: for each, what remained of the pattern there; () for a
    # folder in which everything is searched.
    searched: dict[Identity, set[tuple[str, ...]]] = field(default_factory=dict)
    # Local folders in which a search began, and files that are links.
    starts: list[str] = field(default_factory=list)

    def leave_out(self, reason: Reason, name: str) -> None:
        """Count a file that is left out."""
        self.left_out.setdefault(reason, set()).add(name)


def find_parquet(location: str) -> Found:
    """Find the Parquet files at a location, sorted by name, each once however it is reached.

    A location is a file of any name, a folder that is searched with all folders in it, or a glob of
    either. Names that begin with "_" or "." are left out, unless they are those of partitions
    (``_x=1``). A file whose name does not say that it is Parquet is recognised by its first and
    last bytes. Links are followed, and each folder is searched once.

    Raises:
        FileNotFoundError: The location does not exist.
        InputError: A link is broken, or a folder holds Parquet files of both kinds of names.
        OSError: It cannot be listed.
    """
    location = absolute(location)
    remote = location.startswith(S3_SCHEME)
    search: _Search
    if remote:
        search = _SearchOnS3(location)
        with answers_of(location):
            search.run()
            search.settle()
    else:
        search = _LocalSearch(location)
        search.run()
        search.settle()
    found = search.found
    found.files, further = each_once(found.files)
    for file in further:
        found.leave_out("same_file", file.name)
    return found


def root_of(location: str) -> str:
    """The folder that the files of a location lie in, or below."""
    location = absolute(location).rstrip("/") or "/"
    if not location.startswith(S3_SCHEME):
        root, _ = _split(location)
        return root if os.path.isdir(root) else os.path.dirname(root)
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), location.split("/"))
    return "/".join(parts)


def each_once(files: Iterable[FoundFile]) -> tuple[list[FoundFile], list[FoundFile]]:
    """Files by name, each once by its identity, and the further paths of the same files.

    A file keeps its real path where that is among them.
    """
    by_identity: dict[str, list[FoundFile]] = {}
    for file in {file.url: file for file in files}.values():
        by_identity.setdefault(file.identity, []).append(file)
    further: list[FoundFile] = []
    for same in by_identity.values():
        if len(same) > 1:
            same.sort(key=_reality)
            further += same[1:]
    once = (same[0] for same in by_identity.values())
    return sorted(once, key=lambda file: (file.name, file.url)), further


def _reality(file: FoundFile) -> tuple[bool, bool, str, str]:
    """Sorts the paths of one file: the real one first, then those that are no links themselves."""
    url = file.url
    return os.path.realpath(url) != url, os.path.islink(url), file.name, url


def is_hidden(name: str, pattern: Sequence[str] = ()) -> bool:
    """Whether a path below a location is left out for its name, as Spark and Hive do.

    ``pattern`` are the parts of a glob: one that begins with "_" or "." itself means such names.
    """
    parts = name.split("/")
    if parts[-1].endswith(_UNFINISHED):
        return True
    meant = () if "**" in pattern else pattern
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) or part == "lost+found"
        for place, part in enumerate(parts)
        if not (place < len(meant) and meant[place][:1] == part[:1])
    )


class _Search:
    """The search of one location."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.found = Found()
        self.pattern: tuple[str, ...] = ()  # parts of the glob behind its fixed part
        # Files of other names, that may hold Parquet: named by a glob, or only in a folder.
        self._named: list[FoundFile] = []
        self._unnamed: list[FoundFile] = []
        self._in_folder: list[str] = []  # names in folders that say Parquet

    def take(self, file: FoundFile, *, named: bool) -> None:
        """Add a file by its name; ``named``: a glob names it, and not only its folder."""
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{file.url!r} has a name that is not UTF-8; rename it") from None
        if is_hidden(file.name, self.pattern):
            self.found.leave_out("hidden", file.name)
        elif _PARQUET_NAME.search(file.name):
            self.found.files.append(file)
            if not named:
                self._in_folder.append(file.name)
        elif file.bytes < _SMALLEST or (not named and _OTHER_NAME.search(file.name)):
            self.found.leave_out("not_parquet", file.name)
        else:
            (self._named if named else self._unnamed).append(file)

    def settle(self) -> None:
        """Look into the files whose names say nothing.

        Raises:
            InputError: Folders hold Parquet under both kinds of names.
        """
        named = {file.url for file in self._named}
        undecided = [*self._named, *(file for file in self._unnamed if file.url not in named)]
        holds = dict(zip((f.url for f in undecided), self.hold_parquet(undecided), strict=True))
        others = [file for file in undecided[len(self._named) :] if holds[file.url]]
        if others and self._in_folder:
            some = ", ".join(sorted(file.name for file in others)[:_EXAMPLES])
            raise InputError(
                f"Parquet without names that say so: {len(others)} files ({some}), beside "
                f"{len(self._in_folder)} with such names ({min(self._in_folder)}); reading only "
                "some would lose rows. To take all of them, name them by a glob that ends in *, "
                f"such as {self.location.rstrip('/')}/**/*; to leave those out, by one that ends "
                "in the names of the others, such as **/*.parquet"
            )
        for file in undecided:
            if holds[file.url]:
                self.found.files.append(file)
            else:
                self.found.leave_out("not_parquet", file.name)

    def run(self) -> None:
        """Search."""
        raise NotImplementedError

    def hold_parquet(self, files: Sequence[FoundFile]) -> list[bool]:
        """Whether each file begins or ends as Parquet does; one that only begins so is damaged."""
        raise NotImplementedError


# ----------------------------------------------------------------------------------------- local


class _LocalSearch(_Search):
    def run(self) -> None:
        root, self.pattern = _split(self.location)
        self._root = root
        if self.pattern:
            self.found.starts.append(root)
            self._match(root)
            return
        status = self._stat(root)
        if stat.S_ISDIR(status.st_mode):
            self._walk([root])
            return
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{root} is neither a file nor a folder, but a pipe or a device")
        self._root = os.path.dirname(root)
        self.found.files.append(found_locally(root, self._root, status))
        self.found.starts.append(root)

    def _name(self, path: str) -> str:
        return path[len(self._root.rstrip("/")) + 1 :]

    def _stat(self, path: str) -> os.stat_result:
        """Status of what a path leads to.

        Raises:
            InputError: The path is a link that leads nowhere.
            FileNotFoundError: There is nothing.
        """
        try:
            return os.stat(path)
        except OSError as error:
            if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                circle = error.errno == errno.ELOOP
                fate = "a link of that runs in a circle" if circle else "which does not exist"
                raise InputError(
                    f"{path} is a link to {os.readlink(path)}, {fate}; restore what it leads to, "
                    "or remove the link"
                ) from None
            raise

    def _match(self, root: str) -> None:
        level = [root]
        for place, part in enumerate(self.pattern):
            rest = self.pattern[place:]
            if part == "**":
                level = [path for path, _ in self._folders(level)]
                for folder in level:
                    self._searched(folder, rest)
                if place == len(self.pattern) - 1:
                    break
                continue
            below: list[str] = []
            for folder in level:
                if not os.path.isdir(folder):
                    continue
                self._searched(folder, rest)
                if not glob.has_magic(part):
                    path = os.path.join(folder, part)
                    below += [path] if os.path.lexists(path) else []
                    continue
                below += [
                    os.path.join(folder, name)
                    for name in sorted(os.listdir(folder))
                    if fnmatch.fnmatchcase(name, part)
                    and (part.startswith(".") or not name.startswith("."))
                ]
            level = below
        folders = []
        for path in level:
            if is_hidden(self._name(path), self.pattern) and not os.path.exists(path):
                self.found.leave_out("hidden", self._name(path))  # a broken link that is left out
                continue
            status = self._stat(path)
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                self._file(path, status, named=True)
        self._walk(folders)

    def _walk(self, folders: list[str]) -> None:
        """Search folders and all in them."""
        self.found.starts += folders
        for folder, entries in self._folders(folders):
            self._searched(folder, ())
            for entry in entries:
                hidden = is_hidden(self._name(entry.path), self.pattern)
                try:
                    if entry.is_symlink():
                        if hidden:
                            self.found.leave_out("hidden", self._name(entry.path))
                            continue
                        status = self._stat(entry.path)
                        if stat.S_ISDIR(status.st_mode):
                            continue
                    else:
                        status = entry.stat()
                except FileNotFoundError:  # it went while the folder was listed
                    continue
                self._file(entry.path, status, named=False)

    def _file(self, path: str, status: os.stat_result, *, named: bool) -> None:
        if os.path.islink(path):
            self.found.starts.append(path)
        if stat.S_ISREG(status.st_mode):
            self.take(found_locally(path, self._root, status), named=named)
        else:
            self.found.leave_out("not_parquet", self._name(path))

    def _folders(self, starts: Sequence[str]) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """All folders at and below some, each once, with the entries that are no folders.

        Links are followed last, so that a folder keeps its real path where that is among them.

        Raises:
            OSError: A folder cannot be listed.
        """
        seen: set[Identity] = set()
        links = deque(starts)
        while links:
            own = [links.popleft()]
            while own:
                folder = own.pop()
                try:
                    status = os.stat(folder)
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    with os.scandir(folder) as scan:
                        entries = sorted(scan, key=lambda entry: entry.name)
                except FileNotFoundError:  # it went while the one above was listed
                    continue
                except PermissionError:
                    if folder not in starts and is_hidden(self._name(folder), self.pattern):
                        continue
                    raise
                seen.add((status.st_dev, status.st_ino))
                others = []
                for entry in reversed(entries):
                    if entry.is_dir(follow_symlinks=False):
                        own.append(entry.path)
                    else:
                        others.append(entry)
                others.reverse()
                for entry in others:
                    if entry.is_symlink() and self._leads_to_folder(entry.path):
                        links.append(entry.path)
                yield folder, others

    def _leads_to_folder(self, path: str) -> bool:
        """Whether a link leads to a folder to search."""
        if is_hidden(self._name(path), self.pattern) or not stat.S_ISDIR(self._stat(path).st_mode):
            return False
        self.found.starts.append(path)
        return True

    def _searched(self, folder: str, rest: tuple[str, ...]) -> None:
        status = os.stat(folder)
        self.found.searched.setdefault((status.st_dev, status.st_ino), set()).add(rest)

    def hold_parquet(self, files: Sequence[FoundFile]) -> list[bool]:
        with ThreadPoolExecutor(_READERS) as threads:
            return list(threads.map(lambda file: _has_magic(file.url), files))


def _has_magic(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(-4, os.SEEK_END)
        return head in _MAGIC or file.read(4) in _MAGIC


def _split(location: str) -> tuple[str, tuple[str, ...]]:
    """The fixed part of a location, which names are relative to, and the parts of its pattern.

    A part that exists as it is written is no pattern, whatever its characters.
    """
    parts = location.split("/")
    for place, part in enumerate(parts):
        if glob.has_magic(part) and not os.path.lexists("/".join(parts[: place + 1])):
            return "/".join(parts[:place]) or "/", tuple(parts[place:])
    return location, ()


# ------------------------------------------------------------------------------------------- s3://


class _SearchOnS3(_Search):
    def run(self) -> None:
        client = s3.client(self.location)
        root = self.location.rstrip("/")
        entries = self._entries(client.find(root, detail=True).values())
        if [entry["name"] for entry in entries] == [root.removeprefix(S3_SCHEME)]:
            self.found.files.append(found_on_s3(entries[0], root.rpartition("/")[0]))
        elif entries or not glob.has_magic(root):
            if not entries and not client.exists(root):
                raise FileNotFoundError(self.location)
            for entry in entries:
                self.take(found_on_s3(entry, root), named=False)
        else:
            parts = self.location.split("/")
            first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
            root, self.pattern = "/".join(parts[:first]), tuple(parts[first:])
            for match, entry in client.glob(self.location, detail=True).items():
                if entry["type"] != "directory":
                    self.take(found_on_s3(entry, root), named=True)
                    continue
                for below in self._entries(client.find(match, detail=True).values()):
                    self.take(found_on_s3(below, root), named=False)

    @staticmethod
    def _entries(entries: Iterable[Any]) -> list[Any]:
        # A key that ends in a slash stands for a folder in some tools.
        return [entry for entry in entries if not entry["name"].endswith("/")]

    def hold_parquet(self, files: Sequence[FoundFile]) -> list[bool]:
        """Asked for in two requests a file, many at a time."""
        client = s3.client(self.location)
        urls = [file.url for file in files]
        heads = client.cat_ranges(urls, [0] * len(urls), [4] * len(urls), on_error="raise")
        ends = [file.bytes for file in files]
        tails = client.cat_ranges(urls, [end - 4 for end in ends], ends, on_error="raise")
        return [h in _MAGIC or t in _MAGIC for h, t in zip(heads, tails, strict=True)]
