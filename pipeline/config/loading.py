"""From a YAML file and overrides to a Config; errors name the setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.sections import Section, sections_in
from pipeline.config.settings import Config
from pipeline.credentials import find_credential
from pipeline.errors import ConfigError


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``section.name=value`` overrides to it, with values in YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or settings are wrong; the message has one
            line for each wrong setting.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"config {path} cannot be read: {reason}; give a YAML file") from None
    settings = _parse_yaml(text, where=f"config {path}")
    if not isinstance(settings, dict):
        raise ConfigError(f"config {path} holds no settings; expected YAML such as 'clusters: 10'")
    for override in overrides:
        _apply(settings, override)
    if found := find_credential(settings):
        raise ConfigError(
            f"{found}; take it out: credentials come from the environment "
            "(AWS_ACCESS_KEY_ID and so on), a profile or a role"
        )
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error))) from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            twice = list(_named_twice(loader, node)) if node else []
            if twice:
                raise ConfigError("\n".join(f"{where}: {line}" for line in twice))
            return loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-13-45 looks like a date
        reason = re.sub(r"\s+", " ", _without_excerpt(error))
        raise ConfigError(f"{where} is not valid YAML: {reason}") from None


def _named_twice(loader: yaml.SafeLoader, node: yaml.Node) -> Iterator[str]:
    """One line for each key that a mapping names twice; YAML itself lets the last one win.

    A key that a merge (``<<``) brings and the mapping names too is no duplicate: it is overridden.
    """
    seen: set[int] = set()  # an alias is the node of its anchor

    def visit(node: yaml.Node, path: str, above: tuple[int, ...]) -> Iterator[str]:
        if id(node) in above:
            yield f"{path.rstrip('.')} contains itself, by an alias in {_place(node.start_mark)}"
        if id(node) in seen:
            return
        seen.add(id(node))
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for entry in node.value:
                yield from visit(entry, path, above)
        if not isinstance(node, yaml.MappingNode):
            return
        first: dict[Any, yaml.Mark] = {}
        for key, value in node.value:
            name = "…"
            if isinstance(key, yaml.ScalarNode):
                merge = key.tag == "tag:yaml.org,2002:merge"
                constructed = key.value if merge else loader.construct_object(key)
                if not find_credential({key.value: ""}):
                    name = key.value
                if constructed in first:
                    places = f"{_place(first[constructed])} and in {_place(key.start_mark)}"
                    yield f"{path}{name} is set twice, in {places}; keep one of them"
                first.setdefault(constructed, key.start_mark)
            yield from visit(value, f"{path}{name}.", above)

    yield from visit(node, "", ())


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _without_excerpt(error: Exception) -> str:
    """Problem and position in a YAML text, without its lines, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        problem = re.sub(r"'[^'<]{3,}'", "'…'", error.problem or "it")  # may be a name in the text
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    return str(error)


def _apply(settings: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator or not all(name.split(".")):
        raise ConfigError(f"--set {override!r} must look like refine.alpha=1.0")
    *sections, last = name.split(".")
    for section in sections:
        inner = settings.get(section)
        settings[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        settings = inner
    settings[last] = _parse_yaml(value, where=f"--set {name}")


def _describe(error: ValidationError) -> Iterator[str]:
    for issue in error.errors():
        # pydantic puts the branch of a union behind the field: source.path.list[str]
        location = [str(part) for part in issue["loc"] if not re.search(r"[\[\]]", str(part))]
        path = ".".join(location) or "config"
        got = issue.get("input")
        match issue["type"]:
            case "missing":
                yield f"{path} is missing; the config must set it"
            case "extra_forbidden":
                known = _settings_of(location[:-1])
                near = difflib.get_close_matches(location[-1], known, n=1)
                hint = f"known here: {', '.join(known)}"
                if near:
                    hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?"
                yield f"{path} is not a setting; {hint}"
            case "value_error":
                message = issue["msg"].removeprefix("Value error, ")
                yield message if path == "config" else f"{path}={got!r} {message}"
            case "model_type":
                yield f"{path}={got!r} must be a section with settings of its own"
            case _:
                message = issue["msg"].replace("Input should be", "must be")
                yield f"{path}={got!r} {message[0].lower()}{message[1:]}"


def _settings_of(location: Sequence[str]) -> list[str]:
    """Names of the settings in the section at this path."""
    section: type[Section] = Config
    for name in location:
        if not name.isdecimal():  # the place of an entry in source.features
            (section,) = sections_in(section.model_fields[name].annotation)
    return list(section.model_fields)
