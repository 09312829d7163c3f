"""The command line, `circuits` or `python -m circuits`: what becomes of a command, and of errors."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence

from .parser import parser
from .terminal import notes, plain, say

_MISTAKES = (ValueError, OSError, MemoryError)  # and LookupError, but none of its kinds: those are bugs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit code, 0 where all went well and 2 for a mistake in what was asked."""
    # Threads that spin while they wait make a small model many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = parser()
    try:
        args = commands.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not hasattr(args, "run"):
        commands.print_help()
        return 0
    args.line = shlex.join(["circuits", *argv])
    try:
        with notes():
            args.run(args, say)
        return 0
    except KeyboardInterrupt as stop:
        return _fail(130, " ".join(["Interrupted.", *map(str, stop.args)]))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        mistake = isinstance(error, _MISTAKES) or type(error) is LookupError or out_of_memory
        if args.debug or not mistake:
            print(plain(traceback.format_exc()), file=sys.stderr, end="")
        if out_of_memory:
            return _fail(2, "Out of memory: try a smaller --batch-size.")
        text = re.sub(r"\bbatch_size=", "--batch-size ", " ".join(str(error).split()))
        return _fail(2 if mistake else 1, text or type(error).__name__)


def _fail(code: int, message: str) -> int:
    print(f"circuits: {'error: ' if code != 130 else ''}{plain(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
