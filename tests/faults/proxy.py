"""An HTTP proxy in front of an S3 endpoint that breaks some of what goes through it.

Clients are pointed at it by ``AWS_ENDPOINT_URL``. Requests go on with their headers as they came,
``Host`` too: it is signed. Which request is hit depends on the seed and on its own method and path,
not on the order in which threads happen to ask.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SLOW_BYTES = 1024  # a second
SLOW_SECONDS = 5

# Answered without asking the store.
_ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error."),
    "403": (403, "AccessDenied", "Access Denied"),
    "wrong key": (403, "InvalidAccessKeyId", "The key does not exist in our records."),
}
KINDS = ("503", "500", "reset", "truncated", "slow")


@dataclass(frozen=True)
class Request:
    """A request of a client.

    Attributes:
        method: GET, PUT, …
        path: Path with the query.
        headers: Headers that the client sent, names in lower case.
        fault: Kind of fault that was injected; empty for none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    fault: str = ""

    @property
    def key(self) -> str:
        """The path alone."""
        return self.path.partition("?")[0]


@dataclass
class Fault:
    """A way to break requests.

    Attributes:
        kind: One of ``KINDS``; "403"; "wrong key"; "lost" for one that the store has done and that
            is answered by 500.
        rate: Share of the matching requests.
        on: Whether a request may be hit.
        times: Maximum number of hits; None for no limit.
    """

    kind: str
    rate: float = 1.0
    on: Callable[[Request], bool] = lambda _: True
    times: int | None = None


def is_write(request: Request) -> bool:
    """Whether it makes an object appear: a put, or the end of an upload in parts."""
    put = request.method == "PUT" and "partNumber=" not in request.path
    return put or (request.method == "POST" and "uploadId=" in request.path)


class Proxy:
    """Use as a context manager.

    Args:
        upstream: The endpoint's URL.
        faults: Faults to inject, in order; the first that hits a request is injected.
        seed: Seed of the choice of requests.
    """

    def __init__(self, upstream: str, faults: Sequence[Fault] = (), seed: int = 0) -> None:
        self.faults = list(faults)
        self.seed = seed
        self.requests: list[Request] = []
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def injected(self) -> list[Request]:
        """The requests that were hit."""
        return [request for request in self.requests if request.fault]

    def choose(self, request: Request) -> str:
        """Kind of fault for a request, which is recorded."""
        with self._lock:
            name = f"{request.method} {request.key}"
            self._seen[name] += 1
            chance = random.Random(f"{self.seed} {name} {self._seen[name]}")
            kind = ""
            for fault in self.faults:
                hit = fault.on(request) and chance.random() < fault.rate
                if hit and (fault.times is None or fault.times > 0):
                    fault.times = None if fault.times is None else fault.times - 1
                    kind = fault.kind
                    break
            self.requests.append(replace(request, fault=kind))
            return kind

    def ask(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any, bytes]:
        """The store's own answer."""
        upstream = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=120
        )
        with contextlib.closing(upstream):
            upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    upstream.putheader(name, value)
            if headers.get("Transfer-Encoding") and not headers.get("Content-Length"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.putheader("Connection", "close")
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.headers, answer.read()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def _serve(self) -> None:
        body = b"".join(self._body())
        kind = self.proxy.choose(
            Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        )
        if kind in _ANSWERS:
            self._refuse(kind)
            return
        status, headers, content = self.proxy.ask(self.command, self.path, self.headers, body)
        if kind == "lost":
            self._refuse("500")
            return
        if kind in ("reset", "truncated"):
            if (
                content
            ):  # else it ends without an answer, and whoever asked can't tell what was done
                self._head(status, headers, content)
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
            if kind == "reset":  # RST instead of FIN
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
            self.close_connection = True
            return
        self._head(status, headers, content)
        if kind == "slow":
            step = SLOW_BYTES // 4
            for start in range(0, min(len(content), SLOW_BYTES * SLOW_SECONDS), step):
                self.wfile.write(content[start : start + step])
                self.wfile.flush()
                time.sleep(1 / 4)
            content = content[SLOW_BYTES * SLOW_SECONDS :]
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        yield self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _head(self, status: int, headers: Any, content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()

    def _refuse(self, kind: str) -> None:
        status, code, message = _ANSWERS[kind]
        content = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
            f"<Message>{message}</Message></Error>"
        ).encode()
        if self.command == "HEAD":
            content = b""
        self._head(status, {"Content-Type": "application/xml"}, content)
        self.wfile.write(content)
