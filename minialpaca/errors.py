"""Bad input gets one clear line (what, where, what to do) and exit code 2; never a traceback."""

import functools
import io
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class Stopped(Exception):
    """Somebody asked for it; everything is saved."""


STOPPED = 75  # exit code: sysexits.h calls it «try again later»


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a script's `main`: a UserError becomes one line on stderr and exit code 2, a stop that was asked for 75."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character is shown its number
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            main(*args, **kwargs)
        except UserError as error:
            complain(str(error))
            sys.exit(2)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(STOPPED)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # `… | head` closed our output: leave without a second complaint at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:  # a disk that fills up, a folder that goes away: nothing the program can mend
            complain(f"{error.filename or 'input or output'}: {reason(error)}")
            sys.exit(2)

    return run


def complain(message: str) -> None:
    """One line, whatever a path or a key may hold."""
    print("error: " + "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message),
          file=sys.stderr)


def reason(error: OSError) -> str:
    """'no space left on device' rather than '[Errno 28] No space left on device: …'."""
    return (error.strerror or str(error)).lower()
