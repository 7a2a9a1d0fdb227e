"""TOML files, with errors that name the line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from edgeq.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a file.

    Raises:
        UsageError: it cannot be read, or is no TOML; says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the file") from error
    except UnicodeDecodeError as error:
        raise UsageError("is not UTF-8 text", where=str(path), remedy="save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        cause = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise UsageError(f"is not valid TOML: {cause}", where=f"{path}:{line}", remedy="correct this line") from error
