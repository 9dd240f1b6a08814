"""Locations of files and folders: local paths and s3:// URLs, and no others."""

from __future__ import annotations

import os
import re

S3_SCHEME = "s3://"
# A slash behind the colon tells a scheme from a local name with a colon in it.
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(//?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TILDE = "for a folder whose name begins with ~, write ./~…"


def checked_location(location: str) -> str:
    """A location that can be read and written, without file:// where it begins so.

    Raises:
        ValueError: It has another scheme, which would become the name of a local folder, or no
            path; the message says what to write instead.
    """
    if _CONTROL.search(location):
        raise ValueError("holds a control character; give a path or URL of printable characters")
    found = _SCHEME.match(location)
    if found is None:
        if short := re.match(r"\s*(s3[an]?|file):", location, re.I):
            rest = location[short.end() :]
            plain = rest if short[1].lower() == "file" else f"s3://{rest}"
            raise ValueError(f"is no URL; write {plain}")
        if location.startswith("~") and os.path.expanduser(location) == location:
            raise ValueError(f"names a user that this machine does not have; {_TILDE}")
        return location
    scheme, rest = found[1], location[found.end() :]
    if location.startswith(S3_SCHEME):
        if not rest.strip("/") or rest.startswith("/"):
            raise ValueError("names no bucket; write s3://bucket/prefix")
        return location
    if location.startswith("file:"):
        return _path_of_file_url(location)
    raise ValueError(f"begins with {scheme}:{found[2]}, which is not supported; {_nearest(found)}")


def _path_of_file_url(url: str) -> str:
    # RFC 8089: file:///path, file://localhost/path and file:/path.
    path = re.sub(r"^file:(//(localhost)?(?=/))?", "", url)
    if path.startswith("//") and not path.startswith("///"):
        raise ValueError(f"has a host in place of a path; write file:///{path.lstrip('/')}")
    if "%" in path:
        raise ValueError(
            "is a file:// URL with %, which may stand for itself or for an encoded character; "
            "write the plain path"
        )
    return re.sub("^/+", "/", path)


def _nearest(found: re.Match[str]) -> str:
    """The nearest location that works, as an instruction."""
    scheme, rest = found[1].lower(), found.string[found.end() :]
    if scheme in ("s3", "s3a", "s3n"):
        return f"write s3://{rest.lstrip('/')}"
    if scheme == "file":
        return f"write file:///{rest.lstrip('/')}"
    if scheme == "dbfs":
        return f"write /dbfs/{rest.lstrip('/')}, where Databricks mounts it"
    return (
        "give an s3:// URL (storage.endpoint names any store that speaks S3's protocol), a local "
        "path, such as that of a mounted bucket, or file:///…"
    )
