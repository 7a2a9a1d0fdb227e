"""TOML files, with errors that name the line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from edgeq.errors import UsageError
from edgeq.reading import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a file.

    Raises:
        UsageError: it cannot be read, or is no TOML; says where.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        cause = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise UsageError(f"is not valid TOML: {cause}", where=f"{path}:{line}", remedy="correct this line") from error
    except (RecursionError, ValueError) as error:  # nested a thousand times, or an integer of thousands of digits
        why = "nested too deeply" if isinstance(error, RecursionError) else "it holds a number that is too long"
        raise UsageError(f"is not valid TOML: {why}", where=str(path), remedy="correct the file") from error
