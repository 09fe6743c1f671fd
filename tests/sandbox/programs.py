"""Hostile programs, each with what it must not get further than."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pyseccomp import Arch, resolve_syscall

from rewards.sandbox import Limits, Outcome

BRIEF = Limits(seconds=0.4)
ROOMY = Limits(seconds=10)
SMALL = Limits(seconds=10, memory=256 << 20, disk=4 << 20)
SMALL_AND_BRIEF = Limits(seconds=0.4, memory=256 << 20, disk=4 << 20)

PRELUDE = """\
import ctypes, errno, fcntl, os, resource, signal, socket, stat, sys, threading, time
SECRET, TESTS, PORT, ABSTRACT, VICTIM, MARK = {given!r}
NUMBERS = {numbers!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def attempt(call, *given):
    try:
        call(*given)
    except OSError as error:
        print(errno.errorcode.get(error.errno, type(error).__name__))
    except BaseException as error:
        print(type(error).__name__)
    else:
        print("DONE")

def kernel(name, *given):
    number = NUMBERS.get(name, name)
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, given)) == -1:
        raise OSError(ctypes.get_errno(), "")

def swallow(call, *given):
    try:
        return call(*given)
    except OSError:
        return None

"""
"""Stands before every program. What is given is the host's: a file that all may read, its tests, a
port that listens, an abstract socket, a process to kill."""
CALLED = (
    *("shmget", "msgget", "ptrace", "process_vm_readv", "unshare", "clone", "clone3", "setns"),
    *("mount", "fsopen", "open_tree", "ioctl", "io_uring_setup", "bpf", "perf_event_open"),
    *("keyctl", "add_key", "userfaultfd", "fanotify_init", "name_to_handle_at"),
    "open_by_handle_at",
)
NUMBERS = {name: resolve_syscall(Arch.NATIVE, name) for name in CALLED}
"""Of system calls, on this machine."""

Check = Callable[[Outcome], bool]


def ends(*endings: str) -> Check:
    return lambda outcome: outcome.ending in endings


def says(pattern: str) -> Check:
    """Exits by itself, with standard output that matches as a whole."""
    return lambda outcome: (
        outcome.ending == "exit"
        and re.fullmatch(pattern, outcome.stdout.decode(), re.DOTALL) is not None
    )


def fails(pattern: str) -> Check:
    """Exits with an error, whose last line matches."""
    return lambda outcome: (
        (outcome.ending, outcome.code) == ("exit", 1)
        and re.match(pattern, outcome.stderr.decode().strip().splitlines()[-1]) is not None
    )


def dies(number: int) -> Check:
    return lambda outcome: (outcome.ending, outcome.code) == ("signal", number)


def any_of(*checks: Check) -> Check:
    return lambda outcome: any(check(outcome) for check in checks)


DENIED = r"(EPERM|EACCES|EROFS|ENOENT|ENXIO|ESRCH)\n"
REFUSED = says(r"EPERM\n")


@dataclass(frozen=True)
class Program:
    """Python source with the check of how it ends."""

    source: str
    check: Check
    limits: Limits = field(default=ROOMY)
    has_prelude: bool = True
    only_on: str = ""
    """A kind of processor, "" for all."""


TIME = {
    "burns": Program("while True: pass", ends("timeout"), BRIEF),
    "sleeps": Program("time.sleep(1e6)", ends("timeout"), BRIEF),
    "ignores signals": Program(
        "for n in (1, 2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        ends("timeout"),
        BRIEF,
    ),
    "stops itself": Program("os.kill(os.getpid(), signal.SIGSTOP)", ends("timeout"), BRIEF),
    "closes its descriptors and hangs": Program(
        "for n in range(3): os.close(n)\ntime.sleep(1e6)", ends("timeout"), BRIEF
    ),
    "burns in eight threads": Program(
        "def burn():\n    while True: pass\n"
        "for _ in range(8): threading.Thread(target=burn).start()",
        ends("timeout"),
        BRIEF,
    ),
    "burns in eight processes": Program(
        "for _ in range(3): os.fork()\nwhile True: pass", ends("timeout"), BRIEF
    ),
    "becomes itself again and again": Program(
        "os.execv(sys.executable, [sys.executable, '-I', '-S', 'main.py', MARK])",
        ends("timeout"),
        BRIEF,
    ),
    "drips": Program(
        "while True:\n    print('.', end='', flush=True)\n    time.sleep(0.05)",
        lambda outcome: outcome.ending == "timeout" and 1 <= len(outcome.stdout) <= 9,
        BRIEF,
    ),
}
MEMORY = {
    "grows a list": Program(
        "x = []\nwhile True: x.append(bytearray(1 << 20))", fails("MemoryError"), SMALL
    ),
    "asks for 64 GiB": Program("bytearray(64 << 30)", fails("MemoryError")),
    "prints a tower of powers": Program(
        "print(10**10**9)", any_of(ends("timeout"), fails("(Memory|Value|Overflow)Error")), BRIEF
    ),
    "repeats a letter 2**40 times": Program("'a' * 2**40", fails("MemoryError")),
    "prints a million nested lists": Program(
        "x = []\nfor _ in range(10**6): x = [x]\nprint(repr(x))",
        any_of(fails("RecursionError"), dies(11)),
    ),
    "recurses without a limit": Program(
        "sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        any_of(dies(11), fails("(Memory|Recursion)Error"), ends("timeout")),
        Limits(seconds=1, memory=256 << 20),
    ),
    "swarm of children": Program(
        "held = []\n"
        "for _ in range(20):\n"
        "    child = swallow(os.fork)\n"
        "    if child == 0:\n"
        "        x = b'x' * (40 << 20)\n"
        "        time.sleep(0.2)\n"
        "        os._exit(0)\n"
        "    if child: held.append(child)\n"
        "print(len(held), sum(os.WIFSIGNALED(os.waitpid(c, 0)[1]) for c in held))",
        says(r"20 \d+\n"),
        SMALL,
    ),
    "segments without a process": Program(
        "attempt(kernel, 'shmget', 0, 64 << 20, 0o1600)", REFUSED
    ),
    "files in memory": Program("attempt(os.memfd_create, 'held')", REFUSED),
    "message queues": Program("attempt(kernel, 'msgget', 0, 0o1600)", REFUSED),
}
PROCESSES = {
    "forks for ever": Program("while True: swallow(os.fork)", ends("timeout"), BRIEF),
    "counts its children": Program(
        "n = 0\n"
        "while (child := swallow(os.fork)) is not None:\n"
        "    if child == 0: signal.pause()\n"
        "    n += 1\n"
        "print(n <= 32)",
        says("True\n"),
    ),
    "never reaps": Program(
        "n = 0\n"
        "while (child := swallow(os.fork)) is not None:\n"
        "    if child == 0: os._exit(0)\n"
        "    n += 1\n"
        "print(n <= 32)",
        says("True\n"),
    ),
    "threads for ever": Program(
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "        n += 1\n"
        "except RuntimeError: print(n <= 32, flush=True)\n"
        "os._exit(0)",
        says("True\n"),
    ),
    "leaves a daemon": Program(
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for n in range(3): os.close(n)\n"
        "        time.sleep(1e6)\n"
        "    os._exit(0)\n"
        "print('left')",
        says("left\n"),
    ),
    "leaves a child that holds its output": Program(
        "if os.fork() == 0:\n    time.sleep(1e6)\nprint('left', flush=True)\nos._exit(0)",
        says("left\n"),
    ),
    "kills all": Program("attempt(os.kill, -1, 9)", says(r"ESRCH\n")),
    "kills by number": Program(
        "for n in range(1, 40000):\n"
        "    if n != os.getpid(): swallow(os.kill, n, 9)\n"
        "print('tried')",
        says("tried\n"),
    ),
    "kills the host's process": Program("attempt(os.kill, VICTIM, 9)", says(r"(ESRCH|EPERM)\n")),
    "stops the first process of its box": Program(
        "attempt(os.kill, 1, signal.SIGSTOP)", says(r"(DONE|EPERM)\n")
    ),
    "traces the first process": Program("attempt(kernel, 'ptrace', 16, 1, 0, 0)", REFUSED),
    "reads the memory of the first process": Program(
        "attempt(kernel, 'process_vm_readv', 1, 0, 0, 0, 0, 0)", REFUSED
    ),
    "hijacks the first process": Program(
        "names = ('AS', 'NPROC', 'NOFILE', 'FSIZE', 'CPU')\n"
        "limits = [getattr(resource, 'RLIMIT_' + name) for name in names]\n"
        "print(all(resource.prlimit(1, n) == resource.getrlimit(n) for n in limits))",
        says("True\n"),
    ),
    "interrupts itself": Program(
        "for n in (signal.SIGINT, signal.SIGQUIT): print(signal.getsignal(n) == signal.SIG_IGN)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)",
        dies(2),
    ),
}
OUTPUT = {
    "floods its output": Program("while True: print('x' * 65536)", ends("output")),
    "floods its errors": Program("while True: os.write(2, b'x' * 65536)", ends("output")),
    "writes as much as it may": Program(
        "sys.stdout.write('x' * (1 << 20))",
        lambda outcome: outcome.ending == "exit" and len(outcome.stdout) == 1 << 20,
    ),
    "writes a byte more": Program(
        "sys.stdout.write('x' * ((1 << 20) + 1))",
        lambda outcome: outcome.ending == "output" and len(outcome.stdout) == 1 << 20,
    ),
    "bytes that are no text": Program(
        "os.write(1, b'\\xff\\xfe\\x80')", lambda outcome: outcome.stdout == b"\xff\xfe\x80"
    ),
    "NUL and escapes": Program(
        "os.write(1, b'\\0\\x1b[2J\\x1b]0;x\\x07')",
        lambda outcome: outcome.stdout == b"\0\x1b[2J\x1b]0;x\x07",
    ),
    "a pickle that runs": Program(
        "os.write(1, b\"cos\\nsystem\\n(S'touch /tmp/unpickled'\\ntR.\")",
        lambda outcome: outcome.stdout.startswith(b"cos\nsystem"),
    ),
}
SPACE = {
    **{
        f"fills {folder}": Program(
            "n = 0\n"
            "try:\n"
            f"    with open('{folder}/' + MARK, 'wb', buffering=0) as file:\n"
            "        while True: n += file.write(bytes(1 << 20))\n"
            "except OSError as error: print(errno.errorcode[error.errno], n <= 4 << 20)",
            says(r"(ENOSPC|EFBIG) True\n"),
            SMALL,
        )
        for folder in ("/tmp", "/dev/shm")
    },
    "fills /tmp with many files": Program(
        "n = 0\n"
        "try:\n"
        "    for name in range(1000):\n"
        "        with open(f'/tmp/{name}', 'wb', buffering=0) as file:\n"
        "            n += file.write(bytes(1 << 16))\n"
        "except OSError as error: print(errno.errorcode[error.errno], n <= 4 << 20)",
        says("ENOSPC True\n"),
        SMALL,
    ),
    "makes names without end": Program(
        "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close()\n    n += 1",
        any_of(ends("timeout"), fails("OSError")),
        SMALL_AND_BRIEF,
    ),
    "nests folders without end": Program(
        "os.chdir('/tmp')\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
        any_of(ends("timeout"), fails("OSError")),
        SMALL_AND_BRIEF,
    ),
    "a file of 1 TiB with nothing in it": Program(
        "attempt(open('/tmp/' + MARK, 'wb').truncate, 1 << 40)", says("EFBIG\n")
    ),
    "descriptors without end": Program(
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.dup(0))\n"
        "except OSError as error: print(errno.errorcode[error.errno], len(held) <= 64)",
        says("EMFILE True\n"),
    ),
    "writes to its standard input": Program(
        "f = os.open('/proc/self/fd/0', os.O_RDWR)\nattempt(os.write, f, b'x' * (1 << 20))",
        says(r"EPERM\n"),
    ),
}
FILES = {
    "prints its environment": Program(
        "print(os.environ)", lambda outcome: b"OPD_SECRET" not in outcome.stdout
    ),
    "reads the environment of the first process": Program(
        "print(swallow(lambda: open('/proc/1/environ').read()))",
        lambda outcome: outcome.ending == "exit" and b"OPD_SECRET" not in outcome.stdout,
    ),
    "reads keys": Program(
        "for name in (SECRET, '/etc/shadow', '/etc/passwd', '/etc/ssh', '/home'):\n"
        "    attempt(os.stat, name)",
        says(r"(ENOENT\n){5}"),
    ),
    "reads the grader's tests": Program("attempt(open, TESTS)", says(r"ENOENT\n")),
    "climbs": Program("attempt(open, '../' * 20 + SECRET)", says(r"ENOENT\n")),
    "follows a link of its own": Program(
        "os.symlink(SECRET, '/tmp/link')\nattempt(open, '/tmp/link')", says(r"ENOENT\n")
    ),
    "goes through the first process": Program(
        "attempt(open, '/proc/1/root' + SECRET)\nattempt(open, '/proc/1/cwd/..' + SECRET)",
        says(rf"({DENIED}){{2}}"),
    ),
    "hard links": Program(
        "attempt(os.link, '/usr/bin/env', '/tmp/env')\nattempt(os.link, SECRET, '/tmp/secret')",
        says(r"(EXDEV|EPERM)\nENOENT\n"),
    ),
    "overwrites programs": Program(
        "for name in ('main.py', '/usr/bin/bash', sys.executable, os.__file__):\n"
        "    attempt(open, name, 'r+')\n"
        "attempt(os.chmod, 'main.py', 0o666)",
        says(r"((EROFS|EACCES)\n){4}EROFS\n"),
    ),
    "unlinks itself": Program("attempt(os.unlink, 'main.py')", says(r"EROFS\n")),
    "writes beside itself": Program("attempt(open, 'new', 'w')", says(r"EROFS\n")),
    "removes everything": Program(
        "import shutil\n"
        "shutil.rmtree('/usr/bin', ignore_errors=True)\n"
        "print(os.path.exists('main.py'), os.path.exists('/usr/bin/env'), flush=True)\n"
        "shutil.rmtree('/', ignore_errors=True)",
        lambda outcome: outcome.ending in ("exit", "timeout") and outcome.stdout == b"True True\n",
        Limits(seconds=1),
    ),
    "lists inherited descriptors": Program(
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])", says(r"\[0, 1, 2\]\n")
    ),
    "opens by handle": Program(
        "attempt(kernel, 'name_to_handle_at', -100, 0, 0, 0, 0)\n"
        "attempt(kernel, 'open_by_handle_at', 0, 0, 0)",
        says(r"(EPERM\n){2}"),
    ),
}
NETWORK = {
    "calls the host": Program("attempt(socket.create_connection, ('127.0.0.1', PORT), 1)", REFUSED),
    "calls out": Program("attempt(socket.create_connection, ('1.1.1.1', 80), 1)", REFUSED),
    "asks for a name": Program(
        "attempt(socket.getaddrinfo, 'example.com', 80)", says("(gaierror|EPERM|EAI_AGAIN)\n")
    ),
    "calls an abstract socket": Program(
        "attempt(lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT))", REFUSED
    ),
    "asks the cloud for credentials": Program(
        "attempt(socket.create_connection, ('169.254.169.254', 80), 1)", REFUSED
    ),
    "sockets of other kinds": Program(
        "for family in (16, 17, 38, 40): attempt(socket.socket, family, socket.SOCK_RAW)",
        says(r"(EPERM\n){4}"),
    ),
}
KERNEL = {
    "a new user namespace": Program("attempt(kernel, 'unshare', 0x10000000)", REFUSED),
    "a clone in a new namespace": Program(
        "for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000,\n"
        "             0x40000000):\n"
        "    attempt(kernel, 'clone', flag | signal.SIGCHLD, 0, 0, 0, 0)",
        says(r"(EPERM\n){8}"),
    ),
    "clone3": Program("attempt(kernel, 'clone3', 0, 0)", says(r"ENOSYS\n")),
    "enters a namespace": Program(
        "attempt(kernel, 'setns', os.open('/proc/self/ns/net', 0), 0)", REFUSED
    ),
    "mounts": Program(
        "for name in ('mount', 'fsopen', 'open_tree'): attempt(kernel, name, 0, 0, 0, 0, 0)",
        says(r"(EPERM\n){3}"),
    ),
    "changes its root": Program("attempt(os.chroot, '/tmp')", REFUSED),
    "becomes root": Program(
        "attempt(os.setuid, 0)\nattempt(os.setgid, 0)", says(r"(EP\w+\n|EINVAL\n){2}")
    ),
    "runs setuid programs": Program(
        "import shutil, subprocess\n"
        "shutil.copy('/usr/bin/id', '/tmp/id')\n"
        "os.chmod('/tmp/id', 0o4755)\n"
        "print(subprocess.run(['/tmp/id', '-u'], capture_output=True, text=True).stdout.strip())\n"
        "print(subprocess.run(['/usr/bin/su', '-c', 'true'], capture_output=True).returncode != 0)",
        says("65534\nTrue\n"),
    ),
    "types into a terminal": Program(
        "attempt(fcntl.ioctl, 0, 0x5412, b'x')\nattempt(kernel, 'ioctl', 0, (1 << 32) | 0x5412, 0)",
        says(r"(EPERM\n){2}"),
    ),
    "opens the terminal": Program("attempt(open, '/dev/tty')", says(DENIED)),
    "opens devices": Program(
        "for name in ('/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda', '/proc/kcore',\n"
        "             '/proc/sysrq-trigger'):\n"
        "    attempt(open, name, 'r+b')",
        says(rf"({DENIED}){{6}}"),
    ),
    "makes devices": Program(
        "attempt(os.mknod, '/tmp/disk', stat.S_IFBLK | 0o666, os.makedev(254, 0))", REFUSED
    ),
    "sets the kernel's core pattern": Program(
        "attempt(open, '/proc/sys/kernel/core_pattern', 'w')", says(DENIED)
    ),
    "leaves its control group": Program("attempt(os.listdir, '/sys/fs/cgroup')", says(r"ENOENT\n")),
    "io_uring": Program("attempt(kernel, 'io_uring_setup', 8, 0)", REFUSED),
    "wide interfaces": Program(
        "for name in ('bpf', 'perf_event_open', 'keyctl', 'add_key', 'userfaultfd',\n"
        "             'fanotify_init'):\n"
        "    attempt(kernel, name, 0, 0, 0, 0, 0)",
        says(r"(EPERM\n){6}"),
    ),
    "calls by the numbers of another architecture": Program(
        "kernel(0x40000000 | 41, 1, 1, 0)", dies(31), only_on="x86_64"
    ),
    "raises its limits": Program(
        "for name in ('AS', 'NPROC', 'NOFILE', 'FSIZE', 'CPU'):\n"
        "    limit = getattr(resource, 'RLIMIT_' + name)\n"
        "    attempt(resource.setrlimit, limit, (1 << 40, 1 << 40))",
        says(r"(ValueError\n){5}"),
    ),
    "spares itself when memory is short": Program(
        "print(open('/proc/self/oom_score_adj').read().strip())\n"
        "def spare():\n"
        "    with open('/proc/self/oom_score_adj', 'w') as file: file.write('-1000')\n"
        "attempt(spare)",
        says("1000\n(EACCES|EPERM)\n"),
    ),
    "takes precedence": Program(
        "attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))\n"
        "attempt(os.nice, -10)",
        says(r"(EPERM|EACCES)\n(EPERM|EACCES)\n"),
    ),
}
PLAIN = {
    "a fault of memory": Program("ctypes.string_at(0)", dies(11)),
    "aborts": Program("os.abort()", dies(6)),
    "NUL in its source": Program("x = 1\0", fails("(SyntaxError|ValueError)"), has_prelude=False),
    "100,000 parentheses": Program(
        "(" * 10**5 + ")" * 10**5,
        fails("(SyntaxError|MemoryError|RecursionError)"),
        has_prelude=False,
    ),
    "a literal of 2 MB": Program(f"print(len({'x' * (2 << 20)!r}))", says("2097152\n")),
    "50 MB of source": Program(
        "#" * (50 << 20) + "\nprint('read')", says("read\n"), has_prelude=False
    ),
}
PROGRAMS = {
    **TIME,
    **MEMORY,
    **PROCESSES,
    **OUTPUT,
    **SPACE,
    **FILES,
    **NETWORK,
    **KERNEL,
    **PLAIN,
}
