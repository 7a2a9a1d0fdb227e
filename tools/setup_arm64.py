"""Build the emulated Arm machine. The same as `edgeq device setup arm64`.

python tools/setup_arm64.py [--force]
"""

from __future__ import annotations

import argparse
import sys

from edgeq.devices.setup import set_up
from edgeq.errors import INTERRUPTED, EdgeqError
from edgeq.progress import Silent


class _Notes(Silent):
    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="build anew even if it is there")
    options = parser.parse_args()
    try:
        print(set_up("arm64", _Notes(), force=options.force))
    except EdgeqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
