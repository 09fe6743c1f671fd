"""The seccomp program: what a program in a box may not ask of the kernel."""

from __future__ import annotations

import errno
import os
from functools import cache
from types import ModuleType

from opd.errors import SandboxError

DENIED = (
    # the network, although its namespace is empty too
    "socket",
    # namespaces, mounts and roots
    "unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount "
    "fspick mount_setattr",
    # other processes
    "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd",
    # wide interfaces, where most of the kernel's holes are found
    "io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd "
    "keyctl add_key request_key fanotify_init name_to_handle_at open_by_handle_at",
    # memory that no limit of a process counts
    "memfd_create memfd_secret shmget shmat msgget semget",
    # the machine as a whole
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl quotactl_fd syslog settimeofday clock_settime clock_adjtime adjtimex sethostname "
    "setdomainname iopl ioperm modify_ldt vhangup personality mbind move_pages migrate_pages",
)
DENIED_ON_HOST = (
    # what a user may change of his own files without opening them, of which Landlock knows nothing
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat "
    "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat "
    "file_setattr inotify_add_watch",
    # objects that processes of one user share by number or name
    "shmctl msgctl msgsnd msgrcv semctl semop semtimedop mq_open mq_unlink",
    # his other processes
    "setpriority ioprio_set process_mrelease",
)
"""Where a program is in no namespaces of its own, these too."""
OF_ITSELF = "prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr"
"""There, calls that may name no other process: their first argument is 0."""
NUMBERS = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "file_setattr": 469,
}
"""Calls that an old libseccomp may not know by name: one number on every architecture."""
NEW_NAMESPACES = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000)
"""Flags of clone: a namespace of time, mounts, cgroups, host names, inter-process objects."""
NEW_PRIVILEGED = (0x10000000, 0x20000000, 0x40000000)
"""Flags of clone: a namespace of users, processes, network."""
TERMINAL_INPUT = (0x5412, 0x541C)
"""ioctl: put characters into a terminal as though typed (TIOCSTI, TIOCLINUX)."""


@cache
def program(*, shares_host: bool = False) -> bytes:
    """The filter as BPF, for a program in namespaces of its own or in the host's.

    Raises SandboxError without libseccomp.
    """
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise SandboxError(
            f"the system-call filter cannot be made: {error}; install libseccomp2 and pyseccomp"
        ) from None
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    denied = seccomp.ERRNO(errno.EPERM)
    names = (*DENIED, *DENIED_ON_HOST) if shares_host else DENIED
    for name in " ".join(names).split():
        rules.add_rule(denied, number(name, seccomp))
    # Its flags lie in memory, where a filter cannot look; libraries then take clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), number("clone3", seccomp))
    for flag in (*NEW_NAMESPACES, *NEW_PRIVILEGED):
        rules.add_rule(denied, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    for request in TERMINAL_INPUT:
        # the kernel reads 32 bits of it
        asked = seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)
        rules.add_rule(denied, "ioctl", asked)
    for name in OF_ITSELF.split() if shares_host else ():
        rules.add_rule(denied, name, seccomp.Arg(0, seccomp.NE, 0))
    place = os.memfd_create("seccomp")
    with os.fdopen(place, "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def number(name: str, seccomp: ModuleType) -> str | int:
    """What libseccomp takes for a call that it may not know."""
    unknown = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) == -1
    return NUMBERS[name] if unknown else name
