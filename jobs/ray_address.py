"""Check before Ray starts what it would answer late, or with a message about something else."""

from __future__ import annotations

import os
import re
import socket
import ssl

from pipeline.errors import ConfigError, TransientError
from pipeline.storage import why

_CONNECT_SECONDS = 10.0
# A Ray that is busy answers in milliseconds; this is for networks.
_ANSWER_SECONDS = 10.0
_HOST_AND_PORT = re.compile(r"(ray://)?(\[[0-9A-Fa-f:.]+\]|[^/:\s\[\]]+):(\d{1,5})/?")
# HTTP/2 (RFC 9113): the client's preface with empty settings, and the type of a frame of those.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
# Bytes of the path of a Unix socket on Linux, with its end; fewer on macOS.
_SOCKET_BYTES = 107
# What Ray adds to its folder: session, date and process, and the name of a socket.
_SOCKET_OF_RAY = "session_2026-01-31_23-59-59_999999_{process}/sockets/plasma_store"


def check_ray_settings() -> None:
    """Check the environment that Ray is started with or connected by, without the network.

    Raises:
        ConfigError: RAY_ADDRESS is no address, or the path for temporary files is too long.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={_shown(address)} is the address of a dashboard, which takes jobs: give "
            "it to dec submit, or set RAY_ADDRESS to the head itself: HOST:6379"
        )
    if address in ("", "local"):
        _check_socket_paths()
    elif address != "auto" and not _HOST_AND_PORT.fullmatch(address):
        raise ConfigError(
            f"RAY_ADDRESS={_shown(address)} must be HOST:PORT of a Ray head, such as head:6379; "
            "correct it, or unset it to start Ray on this machine"
        )


def _shown(address: str) -> str:
    return re.sub(r"//[^/@]*@", "//", address)  # without a password


def _check_socket_paths() -> None:
    # As Ray chooses it; on macOS it takes no TMPDIR.
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable) or "/tmp"
    path = os.path.join(folder, "ray", _SOCKET_OF_RAY.format(process=os.getpid()))
    if (excess := len(os.fsencode(path)) - _SOCKET_BYTES) > 0:
        most = len(os.fsencode(folder)) - excess
        raise ConfigError(
            f"{variable}={folder} is too long: Ray's sockets below it would have a path of more "
            f"than {_SOCKET_BYTES} bytes. Set RAY_TMPDIR to a folder of at most {most} bytes, such "
            "as /tmp"
        )


def check_head(address: str) -> None:
    """Check that a Ray head answers at an address; Ray itself would wait for minutes.

    Its protocol is HTTP/2, in which a server speaks at once.

    Raises:
        ConfigError: Something else answers there.
        TransientError: Nothing does.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        return  # auto: of a file that Ray wrote
    host, port = found[2].strip("[]"), int(found[3])
    where = f"the cluster at RAY_ADDRESS={address}"
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as plain:
            with _encrypted(plain, host) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(_PREFACE)
                answer = connection.recv(9)
    except TimeoutError:
        raise TransientError(
            f"{where} does not answer: it accepts connections, or drops them, and is silent; check "
            "that its head runs and that this is its port (6379 unless set)"
        ) from None
    except (OSError, OverflowError) as error:
        raise TransientError(
            f"{where} cannot be reached: {why(error)}; check that it runs, or unset RAY_ADDRESS"
        ) from None
    if not answer:
        raise TransientError(
            f"{where} closes connections at once; check that its head runs, and RAY_USE_TLS"
        )
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ConfigError(
            f"{where} is not a Ray head: something else answers there. Set RAY_ADDRESS to the "
            "head's own port (6379 unless set); its dashboard (8265) is for dec submit"
        )


def wrong_token(address: str, error: Exception) -> ConfigError:
    """The error for a cluster that asks for a token, or for another one."""
    reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".:")
    return ConfigError(
        f"the cluster at RAY_ADDRESS={address} refuses: {reason}. Set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
    )


def _encrypted(plain: socket.socket, host: str) -> socket.socket:
    """The connection as Ray makes it: with RAY_USE_TLS, encrypted and with a certificate."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return plain
    context = ssl.create_default_context(cafile=os.environ.get("RAY_TLS_CA_CERT"))
    context.check_hostname = False  # Ray's certificates have addresses of their own
    context.set_alpn_protocols(["h2"])
    if certificate := os.environ.get("RAY_TLS_SERVER_CERT"):
        context.load_cert_chain(certificate, os.environ.get("RAY_TLS_SERVER_KEY"))
    return context.wrap_socket(plain, server_hostname=host)
