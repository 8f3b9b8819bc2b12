"""YAML and `--set key=value` -> frozen dataclasses, with one sentence for whatever does not fit.

The dataclasses are the documentation of the keys: a dotted name such as `labeler.batch_size` is a path through them.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.label import LabelConfig
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError
from pipeline.store.uris import redact

#: What PyYAML raises for a text that it cannot read, or a value such as the date 2001-99-99.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
#: What is accepted, by pydantic's name for a fault, or the first word of that.
_ACCEPTED = {
    "bool": "true or false",
    "finite": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string": "a text",
    "string_too_short": "a text that is not empty",
    "too_short": "a list that is not empty",
    "tuple": "a list",
    "value_error": "{error}",
}
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring = 2, 80
#: A URL with a password (or, for http, any user: tokens are given so), even one with a slash in it; a port is none.
_PASSWORD = re.compile(r"://[^\s/@\[\]]*:(?!\d*(?:[/?#,\s]|$))|https?://[^\s/@]*@", re.IGNORECASE)
#: In a URL's query, the names of what gives access: X-Amz-Signature, sig, AWSAccessKeyId, access_token and the like.
_SIGNATURE = re.compile(r"sig|token|key|secret|pass|pwd|cred|auth|jwt|policy|session", re.IGNORECASE)


Config = TypeVar("Config", LabelConfig, TrainConfig, EvaluateConfig)


def load(kind: type[Config], path: str, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` settings in order, and check everything.

    A config is written into manifests, logs and reports, and so holds no secrets: see `_secret`.

    Raises:
        UserError: an unreadable file, an unknown key, a wrong type or value, a secret; the sentence names the file and
            the key.
    """
    shown = redact(path)
    try:
        raw = _parsed(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{shown}: no such config file") from error
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from error
    except _NO_YAML as error:
        raise UserError(f"{shown} is no valid YAML: {_reason(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{shown} holds no mapping of keys; see configs/ for examples")
    return load_mapping(kind, raw, shown, settings)


def load_mapping(kind: type[Config], given: Mapping[str, object], shown: str, settings: Sequence[str] = ()) -> Config:
    """As `load`, of what was read already; `shown` is how sentences name it.

    Raises:
        UserError: an unknown key, a wrong type or value, a secret.
    """
    raw: dict[str, Any] = copy.deepcopy(dict(given))
    for setting in settings:
        _apply(raw, setting)
    for key, text in _texts(raw):
        if secret := _secret(text):
            raise UserError(f"{'--set' if _is_set(key, settings) else shown}: {key} holds {secret}")
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        key, sentence = _fault(kind, error)
        raise UserError(f"{'--set' if _is_set(key, settings) else shown}: {sentence}") from None


def fingerprint(value: object) -> str:
    """16 hex digits of the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """Refuses what has no place in a config: aliases, of which few lines unfold to gigabytes, and keys that repeat."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not accepted", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} comes twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _parsed(text: bytes | str) -> Any:
    """The value that a YAML text stands for."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _apply(raw: dict[str, Any], setting: str) -> None:
    """Put `a.b=value`, the value as YAML, into a nested mapping."""
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise UserError(f"--set {redact(setting)}: write it as key=value, for example --set run.workers=2")
    try:
        value = _parsed(text)
    except _NO_YAML as error:
        raise UserError(f"--set {redact(setting)}: the value is no valid YAML: {_reason(error)}") from error
    *parents, last = key.split(".")
    node = raw
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {redact(setting)}: {name} is a value, not a group of keys")
        node = child
    node[last] = value


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a nested config, each with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _texts(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _texts(below, f"{key}[{number}]")


def _secret(text: str) -> str | None:
    """What gives access in a text of a config, and where it belongs; None where there is nothing of the kind.

    >>> _secret("s3://bucket/a.tar"), _secret("http://host:9000/a@b.tar?download=true")
    (None, None)
    >>> _secret("https://host/a.tar?sig=abc")  # doctest: +ELLIPSIS
    'a signed URL (sig), which would stand in manifests and logs; give the storage itself, ...'
    """
    where = "which would stand in manifests and logs;"
    if _PASSWORD.search(text):
        return (
            f"a password, {where} set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else the storage reads, in "
            "the environment of all nodes, and give the password of an http server in ~/.netrc"
        )
    query = text.partition("?")[2] if "://" in text else ""
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if _SIGNATURE.search(name):
            return (
                f"a signed URL ({name}), {where} give the storage itself, such as s3://bucket/key, with credentials in "
                "the environment, or put the URLs of the images into a column of a Parquet file"
            )
    return None


def _is_set(key: str, settings: Sequence[str]) -> bool:
    """Whether a key, or one above or below it, is among `key=value` settings."""
    place = key.replace("[", ".") + "."
    set_places = (f"{setting.partition('=')[0]}." for setting in settings)
    return any(place.startswith(one) or one.startswith(place) for one in set_places)


def _reason(error: Exception) -> str:
    """What is wrong with a YAML, without the excerpts that PyYAML adds."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return "it is no text in UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return str(error)


def _fault(kind: type[Any], error: ValidationError) -> tuple[str, str]:
    """The key and the sentence of the fault that says most: an unknown key, else the one deepest in the config."""
    known = _keys(kind)
    faults = [(_key(fault, known), fault) for fault in error.errors(include_url=False)]
    key, first = max(faults, key=lambda one: (one[1]["type"] in _UNKNOWN, len(one[1]["loc"])))
    if first["type"] in _UNKNOWN:
        group = [one for one in known if one.rpartition(".")[0] == key.rpartition(".")[0]]
        names = {one.rpartition(".")[2]: one for one in (*known, *group)}
        near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
        hint = f"did you mean {names[near[0]]}?" if near else f"known are {', '.join(group)}"
        return key, f"{key} is no known key; {hint}"
    if first["type"] == "missing":
        return key, f"{key} is missing"
    accepted = dict.fromkeys(_accepted(key, fault, known) for its_key, fault in faults if its_key == key)
    return key, f"{key} is {_shown(first['input'])}; it must be {', or '.join(accepted)}"


def _key(fault: ErrorDetails, known: Sequence[str]) -> str:
    """The dotted key of a fault, whose place also names alternatives of a type, such as "constrained-int"."""
    key = ""
    for number, part in enumerate(fault["loc"], start=1):
        longer = f"{key}.{part}" if key else str(part)
        if longer in known or (number == len(fault["loc"]) and fault["type"] in _UNKNOWN):
            key = longer
        elif isinstance(part, int):
            key += f"[{part}]"
    return key


def _accepted(key: str, fault: ErrorDetails, known: Sequence[str]) -> str:
    """What is accepted where this fault was found."""
    if fault["type"] == "dataclass_type":
        members = [one.removeprefix(f"{key}.") for one in known if one.startswith(f"{key}.")]
        return f"a group of keys ({', '.join(members)})"
    words = _ACCEPTED.get(fault["type"]) or _ACCEPTED.get(fault["type"].partition("_")[0]) or fault["msg"]
    unquoted = fault["type"] == "string_type" and not isinstance(fault["input"], list | dict | None)
    return words.format(**fault.get("ctx", {})) + (" in quotes" if unquoted else "")


def _shown(value: object) -> str:
    """A value about as YAML has it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return redact(_BRIEF.repr(value)) if isinstance(value, str | list | dict) else str(value)


def _keys(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of all keys of a config class, groups included."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        keys.append(prefix + name)
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                keys += _keys(option, f"{prefix}{name}.")
    return keys
