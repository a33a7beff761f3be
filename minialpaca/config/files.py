"""Configs as TOML files and dotted overrides, there and back: defaults ← file ← overrides, every key and value checked."""

import ast
import dataclasses
import difflib
import inspect
import json
import math
import textwrap
import tomllib
import typing
from pathlib import Path

from minialpaca.errors import UserError, reason

# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def load(form: type, path: str | Path | None = None, overrides: typing.Sequence[str] = ()):
    """Defaults of `form` ← the TOML file ← `section.key=value` overrides, every key and value checked."""
    table = read_toml(path) if path is not None else {}
    values = _checked(form, table, where=str(path) if path else "defaults")
    for override in overrides:
        for section, fields in _checked(form, _parse_override(override), where="command line").items():
            values.setdefault(section, {}).update(fields)
    sections = {f.name: dataclasses.replace(default_of(form, f.name), **values.get(f.name, {}))
                for f in dataclasses.fields(form)}
    return form(**sections)


def read_toml(path: str | Path) -> dict:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; those that come with minialpaca are in configs/") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # too many digits, too many brackets
        raise UserError(f"{path}: is not valid TOML: {str(error)[:200]}") from None


def _parse_override(text: str) -> dict:
    """`optim.lr=3e-4` → {"optim": {"lr": 0.0003}}; what is no TOML value is taken as a string."""
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise UserError(f"command line: {text!r} is no override; write section.key=value, e.g. optim.lr=3e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    return {section: {name: Written(parsed, value)}}


class Written(typing.NamedTuple):
    """A value of the command line beside how it was written there: run.dir=1e3 means the text."""

    value: object
    text: str


def _checked(form: type, table: dict, where: str) -> dict[str, dict]:
    """Each value of `table` converted to the type of its field; unknown keys are errors."""
    types = {section: typing.get_type_hints(default_of(form, section).__class__) for section in _names(form)}
    known = [f"{section}.{name}" for section in types for name in _names(default_of(form, section))]
    result: dict[str, dict] = {}
    for section, fields in table.items():
        if not isinstance(fields, dict):
            raise UserError(f"{where}: {section!r} stands outside a section; {_nearest(section, known)}")
        for name, value in fields.items():
            key = f"{section}.{name}"
            if key not in known:
                raise UserError(f"{where}: unknown key {key}; {_nearest(key, known)}")
            result.setdefault(section, {})[name] = _convert(value, types[section][name], key, where)
    return result


def _convert(value, wanted, key: str, where: str):
    if isinstance(value, Written):
        as_written = wanted is str or wanted == tuple[str, ...] and type(value.value) is int  # classes.labels=1
        value = value.text if as_written and not isinstance(value.value, str) else value.value
    if wanted == tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
            return tuple(items)
    elif wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 or value != value else math.inf if value > 0 else -math.inf
    elif type(value) is wanted:
        return value
    kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(wanted, "a list of texts")
    raise UserError(f"{where}: {key} = {value!r} must be {kind}")


def _nearest(key: str, known: list[str]) -> str:
    by_name = {k.partition(".")[2]: k for k in known}
    name = key.rpartition(".")[2]
    near = [by_name[name]] if name in by_name else difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)]
    return f"did you mean {near[0]}?" if near else "run with --help for the list of keys"


def _names(form) -> list[str]:
    return [f.name for f in dataclasses.fields(form)]


def default_of(form: type, section: str):
    f = next(f for f in dataclasses.fields(form) if f.name == section)
    return f.default if f.default is not dataclasses.MISSING else f.default_factory()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def to_toml(config) -> str:
    """The whole config as TOML; `load` reads it back to an equal config."""
    lines: list[str] = []
    for section in _names(config):
        lines += [f"[{section}]", *(f"{name} = {_toml_value(getattr(getattr(config, section), name))}"
                                    for name in _names(getattr(config, section))), ""]
    return "\n".join(lines)


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON strings are TOML strings
    return repr(value)


def describe(form: type) -> str:
    """Every key with its default and its sentence, for `--help`."""
    lines = []
    for section in _names(form):
        default = default_of(form, section)
        sentences = field_docs(type(default))
        lines += ["", f"[{section}]"]
        for name in _names(default):
            head = f"  {section}.{name} = {_toml_value(getattr(default, name))}"
            lines += [head, textwrap.fill(sentences[name], 110, initial_indent="      ", subsequent_indent="      ")]
    return "\n".join(lines)


def field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated field, read from the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {a.target.id: ast.literal_eval(b.value) for a, b in zip(body, body[1:])
            if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)}
