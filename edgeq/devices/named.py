"""Devices by the names that a user gave them, in a file below `$EDGEQ_HOME`."""

from __future__ import annotations

import json
import re

from edgeq.devices.qemu import devices_folder
from edgeq.errors import UsageError
from edgeq.files import atomic_write

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def named() -> dict[str, str]:
    """What each name stands for.

    Raises:
        UsageError: the file is damaged.
    """
    path = devices_folder() / "named.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the list of devices cannot be read: {error}", where=str(path), remedy="mend it") from None
    if not (isinstance(found, dict) and all(isinstance(one, str) for one in found.values())):
        raise UsageError("the list of devices is damaged", where=str(path), remedy="mend it, or delete it")
    return found


def keep(name: str, address: str) -> None:
    """Gives a device a name, or another one what had it.

    Raises:
        UsageError: it is no name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a device", remedy="letters, digits, - and _")
    _write({**named(), name: address})


def forget(name: str) -> None:
    """Takes a name back.

    Raises:
        UsageError: no device has it.
    """
    known = named()
    if name not in known:
        raise UsageError(f"no device is called {name!r}", remedy=f"one of {', '.join(known) or 'none so far'}")
    _write({key: address for key, address in known.items() if key != name})


def _write(known: dict[str, str]) -> None:
    path = devices_folder() / "named.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(known, indent=2) + "\n")
