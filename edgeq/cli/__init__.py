"""The command line: `edgeq deploy`, `plan`, `explain`, `inspect`, `targets`, `device`, `validate`, `verify`, ..."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

from edgeq.cli import signals


def main() -> None:
    """The program `edgeq`."""
    signals.install()
    try:
        # Imported here, so that Ctrl-C is quiet during these imports too.
        from edgeq.cli.app import run

        code = run(sys.argv[1:])
    except signals.Stopped as stopped:
        code = stopped.exit_code
        signals.say_so()
    signals.uninstall()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a stream that was closed before the start is None
            try:
                stream.flush()
            except OSError as error:
                # Otherwise Python tries again at exit, and complains.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                if not isinstance(error, BrokenPipeError):
                    code = code or 2
                    sys.stderr.write(f"error: standard output: it cannot be written: {error.strerror}\n")
    gc.freeze()  # what torch leaves behind takes the collector more than a second, for nothing
    sys.exit(code)
