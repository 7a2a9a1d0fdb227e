"""The headers of ONNX Runtime, for the tests of examples/drone: out of Debian's package, without installing it.

python tools/onnxruntime_headers.py [FOLDER]

Wheels bring the library and no headers. Those of an older release go with a newer library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeq.devices.setup import QEMU_SUITE, Apt, debian_release, native_architecture
from edgeq.errors import EdgeqError

FOLDER = Path(__file__).parent.parent / "build" / "onnxruntime-headers"


def fetch(folder: Path) -> None:
    """Fill a folder, or leave it as it is where it is there.

    Raises:
        DeviceError: this is no Debian system with apt, or has no network.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        release = debian_release()
        # The releases that have too old an emulator lack this package too.
        apt = Apt(Path(work) / "apt", release, QEMU_SUITE.get(release, release), native_architecture())
        subprocess.run(["dpkg-deb", "-x", apt.fetch("libonnxruntime-dev"), Path(work) / "unpacked"], check=True)
        os.rename(Path(work) / "unpacked/usr/include/onnxruntime", folder)


def main() -> int:
    try:
        fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    except EdgeqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
