"""What every section refuses: `model.n_heads = 7: must divide model.d_model = 192`."""

import codecs
import dataclasses
import re

from minialpaca.errors import UserError


def check(config, rules: dict[str, tuple[bool, str]]) -> None:
    """Raise for the first field whose rule is broken: `model.n_heads = 7: must divide model.d_model`."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str) and not is_plain(text):
                raise UserError(f"{config.SECTION}.{f.name} = {text!r}: holds a character that no file name or text can hold")
            if f.name.endswith("source") and not text.strip():  # an unset shell variable must not mean the working directory
                raise UserError(f"{config.SECTION}.{f.name} = {list(value)}: one of them is blank; name a file or leave it out")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(f"{config.SECTION}.{f.name} = {str(value)[:30]}…: is larger than any machine counts")
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UserError(f"{config.SECTION}.{name} = {getattr(config, name)!r}: {rule}")


def refuse_idle(config, used_by: dict[str, tuple[str, ...]]) -> None:
    """A key that the chosen method does not look at would be set in vain."""
    default = {f.name: f.default for f in dataclasses.fields(config)}
    check(config, {key: (config.method in methods or getattr(config, key) == default[key],
                         f"means nothing to {config.SECTION}.method = {config.method!r}; leave it out, or use {', '.join(methods)}")
                   for key, methods in used_by.items()})


def is_plain(text: str) -> bool:
    """Neither half a surrogate pair (from bytes that are no UTF-8) nor a NUL."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def is_device(name: str) -> bool:
    return bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name))


def is_encoding(name: str) -> bool:
    try:
        return bool(codecs.lookup(name)._is_text_encoding)
    except (LookupError, ValueError):
        return False
