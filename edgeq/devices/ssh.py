"""Devices that are reached by SSH: `ssh://user@host:port`.

Hosts have to be known (`~/.ssh/known_hosts`). Keys come from the agent or from `~/.ssh`, as `~/.ssh/config` says. No
password is asked for.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from edgeq.devices.device import Device
from edgeq.devices.over_shell import AGAIN, Process, Start
from edgeq.devices.remote import remote, split
from edgeq.errors import DeviceError, MissingExtraError, UsageError

ALIVE = {"keepalive_interval": 10, "keepalive_count_max": 3, "connect_timeout": 20, "login_timeout": 20}
"""Seconds; a cut that nobody tells of is found within half a minute."""


def open_ssh(rest: str) -> Device:
    """A device by what its name has behind `ssh://`.

    Raises:
        UsageError: that is no address.
        DeviceError: it cannot be reached, or its key is not known.
    """
    name = f"ssh://{rest}"
    address, options = split(name, rest)
    if not address.hostname or address.password or address.path.strip("/"):
        raise UsageError(f"cannot read {name!r}", remedy="ssh://user@host:22; keys are taken, and no passwords")
    return remote(name, partial(_connected, name, address), options)


@asynccontextmanager
async def _connected(name: str, address: Any) -> AsyncIterator[Start]:
    try:
        import asyncssh
    except ModuleNotFoundError as error:
        raise MissingExtraError("asyncssh", "ssh") from error
    met = False
    given = {key: value for key, value in (("username", address.username), ("port", address.port)) if value}
    try:
        # whoever is not known is refused, and nobody is asked for a password
        async with asyncssh.connect(
            address.hostname, **given, **ALIVE, password_auth=False, kbdint_auth=False
        ) as there:
            met = True

            async def start(line: str) -> Process:
                process = await there.create_process(line, encoding=None)

                async def ended() -> int | None:
                    done = await process.wait(check=False)
                    if done.exit_signal is not None:
                        return -int(getattr(signal, f"SIG{done.exit_signal[0]}", signal.SIGTERM))
                    return done.exit_status

                return Process(process.stdin, process.stdout, process.stderr, ended)

            yield start
    except asyncssh.HostKeyNotVerifiable as error:
        command = f"ssh -p {address.port or 22} {address.hostname}"
        remedy = f"log in once, and compare the key's fingerprint with the device's: {command}"
        raise DeviceError(f"its host key is not known: {error.reason}", where=name, remedy=remedy) from error
    except asyncssh.PermissionDenied as error:
        remedy = "put your public key into ~/.ssh/authorized_keys there; keys are taken, and no passwords"
        raise DeviceError(f"it does not let you in: {error.reason}", where=name, remedy=remedy) from error
    except (asyncssh.Error, OSError) as error:
        if met:
            raise DeviceError(f"the connection to it broke: {error}", where=name, remedy=AGAIN) from error
        remedy = "look whether it is on, and whether ssh gets there"
        raise DeviceError(f"it cannot be reached: {error}", where=name, remedy=remedy) from error
