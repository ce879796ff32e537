"""The command line: a file for each command."""

import gc
import sys


def main() -> None:
    """Entry point of the command ``regaze``."""
    # Modules stay to the end: to look through them again and again for garbage takes a tenth of a
    # short command's time.
    gc.set_threshold(50_000, 20, 50)
    try:
        # Here, so that an interrupt is answered while the commands load, too.
        from regaze.cli.commands import app

        app(prog_name="regaze")
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        raise SystemExit(130) from None
