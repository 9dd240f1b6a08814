"""Addresses of Ray and folders of its sockets: one clear line, and never a wait of minutes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Dec

from jobs import ray_address
from jobs.ray_address import check_head, check_ray_settings
from jobs.session import connect_ray
from pipeline.errors import ConfigError, TransientError

CONFIG, RETRY = 2, 6


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    """An address that accepts connections and answers with the bytes of a list, or is silent."""
    monkeypatch.setattr(ray_address, "_ANSWER_SECONDS", 0.3)
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held = []
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if answers and answers[0] == b"":
                    connection.close()
                elif answers:
                    connection.sendall(answers[0])
                held.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", answers
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_address_that_accepts_and_is_silent(
    listening: tuple[str, list[bytes]], scheme: str
) -> None:
    with pytest.raises(TransientError, match="does not answer: it accepts connections"):
        check_head(scheme + listening[0])


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", ConfigError, "is not a Ray head: something else"),
        (b"-ERR unknown command", ConfigError, "is not a Ray head"),
        (b"SS", ConfigError, "is not a Ray head"),
        (b"", TransientError, "closes connections at once|cannot be reached"),
        (bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]), None, ""),  # settings, as gRPC answers
    ],
)
def test_what_answers(
    listening: tuple[str, list[bytes]], answer: bytes, kind: Any, words: str
) -> None:
    address, answers = listening
    answers.append(answer)
    if kind is None:
        check_head(address)
        return
    with pytest.raises(kind, match=words):
        check_head(address)


def test_address_that_nobody_listens_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "no-such-host.invalid:6379", "127.0.0.1:99999"):
        with pytest.raises(TransientError, match="cannot be reached"):
            check_head(address)
    check_head("auto")  # Ray's own file says where


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://head:8265", "dec submit"),
        ("https://user:secret@head", "RAY_ADDRESS=https://head is the address of a dashboard"),
        ("head", "must be HOST:PORT"),
        ("head:port", "must be HOST:PORT"),
        ("grpc://head:6379", "must be HOST:PORT"),
        ("head:6379/path", "must be HOST:PORT"),
        ("ray://head", "must be HOST:PORT"),
        (" head:6379", "must be HOST:PORT"),
    ],
)
def test_address_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str, words: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=words) as error:
        check_ray_settings()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["head:6379", "ray://10.0.0.1:10001", "[::1]:6379", "auto"])
def test_addresses_that_are_right(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("TMPDIR", "/" + "t" * 200)  # of another process's Ray
    check_ray_settings()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_folder_too_long_for_a_socket(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "ü" * 40)  # bytes count
    with pytest.raises(ConfigError, match=rf"{variable}=/ü+ is too long.* at most (\d+) bytes"):
        check_ray_settings()
    most = 107 - len(f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store")
    monkeypatch.setenv(variable, "/" + "t" * (most - 1))
    check_ray_settings()
    monkeypatch.setenv(variable, "/" + "t" * most)
    with pytest.raises(ConfigError, match=f"at most {most} bytes"):
        check_ray_settings()


@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, CONFIG, "dec submit"),
        ({"RAY_ADDRESS": "head"}, CONFIG, "must be HOST:PORT"),
        ({"RAY_ADDRESS": "", "RAY_TMPDIR": "/" + "t" * 90}, CONFIG, "is too long"),
    ],
)
def test_commands_say_so_at_once(
    dec: Dec, settings: dict[str, Any], tmp_path: Path, env: dict[str, str], code: int, words: str
) -> None:
    for command in ("run", "tune"):
        result = dec(command, settings=settings, env=env)
        assert (result.code, len(result.err.splitlines())) == (code, 1), result.err
        assert words in result.err
    assert not (tmp_path / "lake").exists()


def test_a_node_that_does_not_start_in_time_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(TransientError, match="Ray on this machine cannot be reached"):
        connect_ray()
