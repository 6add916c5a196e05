"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 the work failed (one line says why), 2 bad usage (the nearest right word is named).
"""

import os
import sys
from typing import NoReturn

from typer._click.exceptions import ClickException
from typer.exceptions import TyperException

from openvocab import progress
from openvocab.cli import ask, collect, create, learn, models, recognize, search, serve  # noqa: F401  registers verbs
from openvocab.cli.app import app

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> NoReturn:
    """The `openvocab` command."""
    # libgomp: waiting threads spin 300 times less long, or two are slower than one wherever a core is shared.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; never a traceback for bad input."""
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="openvocab")
        if code == _INTERRUPTED:
            progress.warn("interrupted; train, embed, index and classify --out go on with the same command")
        return code if isinstance(code, int) else 0
    except TyperException as error:
        message = error.format_message() if isinstance(error, ClickException) else str(error)
        progress.warn(message.replace("\n", " "))
        return getattr(error, "exit_code", 2)
    except (ValueError, OSError, RuntimeError) as error:
        progress.warn(str(error).replace("\n", " ") or type(error).__name__)
        return 1
