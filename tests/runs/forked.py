"""A function in a forked process, which may be killed, limited or redirected without harm to the tests."""

import gc
import os
import signal

SECONDS = 300


def forked(function):
    """(text that `function(descriptor)` wrote to the descriptor, exit code as by `os.waitstatus_to_exitcode`): it returns the exit code.

    The threads of this process do not exist in the child, so nothing that waits for one may be collected there; a child that hangs all the same
    is ended by SIGALRM.
    """
    read, write = os.pipe()
    gc.collect()
    gc.freeze()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            gc.disable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            code = function(write)
        finally:
            os._exit(code)
    gc.unfreeze()
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text, os.waitstatus_to_exitcode(status)
