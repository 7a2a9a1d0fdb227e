"""Text from files where people read it: characters that would steer a terminal, hide, or turn the reading order are
shown as escapes; and text that cannot be written as UTF-8 is made such that can."""

from __future__ import annotations

from typing import Any


def visible(text: str, keep: str = "") -> str:
    """A text with every control character, line break, direction mark, character of no width and lone surrogate as an
    escape such as `\\x1b`.

    Args:
        keep: characters that are left as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def whole(text: str) -> str:
    """A text that UTF-8 can hold: what was no text where it came from, as in a file's name, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def writable(content: Any) -> Any:
    """The fields of a document with text that a file can hold, for a pydantic validator; documents within it see to
    themselves."""
    return {name: _whole(value) for name, value in content.items()} if isinstance(content, dict) else content


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [whole(one) if isinstance(one, str) else one for one in value]
    if isinstance(value, dict):
        return {_whole(key): whole(one) if isinstance(one, str) else one for key, one in value.items()}
    return value
