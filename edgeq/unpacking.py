"""How much an archive may unpack to: a few bytes can stand for gigabytes, which no honest file does."""

from __future__ import annotations

import zipfile

from edgeq.errors import UsageError

_ALWAYS = 1 << 28
_TIMES = 32


def check_unpacked(archive: zipfile.ZipFile, file_bytes: int, where: str) -> None:
    """Refuse an archive whose members say that together they are many times as large as it is.

    Weights and samples shrink by a few times at most, zeros a thousandfold. No reader gets more of a member than it
    says.

    Args:
        archive: the archive, opened.
        file_bytes: the size of its file.
        where: its name, for the message.

    Raises:
        UsageError: more than 256 MB, and than 32 times the file.
    """
    unpacked, most = sum(member.file_size for member in archive.infolist()), max(_ALWAYS, _TIMES * file_bytes)
    if unpacked > most:
        raise UsageError(
            f"its {file_bytes / 1e6:.3g} MB say that they unpack to {unpacked / 1e6:.0f} MB, and {most / 1e6:.0f} MB "
            "are the most",
            remedy="if that is what it should hold, write it without compression",
            where=where,
        )
