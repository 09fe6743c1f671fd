"""Runs a program under Landlock and seccomp, and ends all that it leaves; the text of `python -c`.

Arguments: one word of name=number settings, one of moves as in shim.sh, then the command. The first
process stays outside the program's rules, but in a domain around it: signals leave neither, so that
kill(-1) from here reaches whatever the program has started, at once, and nothing else.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

NO_NEW_PRIVILEGES, SECCOMP, DIES_WITH_PARENT, ADOPTS = 38, 22, 1, 36
FILTER, RESTRICT_SELF, HIGH = 2, 446, 100
WATCHED = (signal.SIGTERM, signal.SIGCHLD)
libc = ctypes.CDLL(None, use_errno=True)


def kernel(call, *given):
    if call(*map(ctypes.c_long, given)) == -1:
        raise OSError(ctypes.get_errno(), "the kernel refused a layer")


class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("start", ctypes.c_char_p))


def enclose(settings):
    """Leave the user that we are, and let no signal of ours out."""
    kernel(libc.prctl, DIES_WITH_PARENT, signal.SIGTERM, 0, 0, 0)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if user := settings["user"]:
        os.setgroups(())
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        # a change of user forgets it
        kernel(libc.prctl, DIES_WITH_PARENT, signal.SIGTERM, 0, 0, 0)
    kernel(libc.prctl, ADOPTS, 1, 0, 0, 0)
    kernel(libc.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    kernel(libc.syscall, RESTRICT_SELF, settings["signals"], 0)
    try:
        os.kill(settings["parent"], 0)
    except PermissionError:
        return
    raise OSError("signals leave the box, or its parent is gone")


def become(command, settings, moves):
    """The program, with every limit."""
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    for inside, ours in moves:
        os.dup2(ours, inside)
    text = os.pread(settings["seccomp"], 1 << 19, 0)
    program = Filter(len(text) // 8, text)
    kernel(libc.syscall, RESTRICT_SELF, settings["rules"], 0)
    kernel(libc.prctl, SECCOMP, FILTER, ctypes.addressof(program), 0, 0)
    for name in ("CORE", "NOFILE", "FSIZE", "NPROC", "CPU", "AS"):
        most = settings[name]
        number = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(number, (most - (name == "CPU"), most))
    os.write(settings["ready"], b".")
    for descriptor in range(HIGH, settings["highest"] + 1):
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(126 if isinstance(error, PermissionError) else 127)


def wait_for(program):
    """The exit status of the program, None when we are to end it."""
    while signal.sigwait(WATCHED) == signal.SIGCHLD:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def end_all():
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()


def main():
    settings = {name: int(number) for name, number in (w.split("=") for w in sys.argv[1].split())}
    moves = [tuple(map(int, move.split(":"))) for move in sys.argv[2].split()]
    enclose(settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    program = os.fork()
    if program == 0:
        become(sys.argv[3:], settings, moves)
    os.closerange(0, settings["highest"] + 1)
    status = wait_for(program)
    end_all()
    status = -signal.SIGKILL if status is None else status
    os._exit(status if status >= 0 else 128 - status)


main()
