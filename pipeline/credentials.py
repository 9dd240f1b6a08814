"""Detect credentials in settings, which are shown, logged and stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(
    r"access_?key|api_?key|secret|token|passw|credential|private_?key|account_?key|signature|^key$",
    re.I,
)
_VALUE = re.compile(
    r"^[a-z0-9+.-]+://[^/?#]*@"  # user:password@host
    r"|\b(AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS's access key ids
    r"|[?&](X-Amz-(Signature|Credential|Security-Token)|AWSAccessKeyId|sig)=",  # a signed URL
    re.I,
)


def find_credential(settings: Any, path: str = "") -> str | None:
    """Path of a credential in settings read from YAML, without its value; None without one."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if _NAME.search(str(name)) or _VALUE.search(str(name)):
                return f"{path or 'the config'} has a setting for a credential"
            if found := find_credential(value, f"{path}.{name}" if path else str(name)):
                return found
    elif isinstance(settings, list):
        return next((found for value in settings if (found := find_credential(value, path))), None)
    elif isinstance(settings, str) and _VALUE.search(settings):
        return f"{path} holds a credential"
    return None


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of an environment that are secrets, judged by their names."""
    return {
        name: value
        for name, value in environment.items()
        # Shorter values are no secrets, nor are paths to them: AWS_SHARED_CREDENTIALS_FILE.
        if _NAME.search(name) and len(value) >= 8 and not Path(value).is_absolute()
    }
