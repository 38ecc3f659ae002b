"""System calls that a model's process does without, and their numbers (the kernel's own tables)."""

from __future__ import annotations

from dataclasses import dataclass

_STARTING = ("fork", "vfork", "execve", "execveat")
_REACHING_OTHERS = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "pidfd_send_signal"),
    *("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "setpriority"),
)
_MOUNTING = (
    *("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "open_tree", "move_mount", "fsopen"),
    *("fsconfig", "fsmount", "fspick", "mount_setattr", "open_by_handle_at", "quotactl", "swapon", "swapoff"),
)
_ADMINISTERING = (
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "acct"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname"),
    *("iopl", "ioperm", "bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl"),
)
# Landlock says nothing of these, and they change files that may only be read.
_MARKING_FILES = (
    *("chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat", "truncate", "utimensat"),
    *("fchmodat2", "setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
)

# What these make outlives the process, and counts for none: memory that nobody gives back.
_STAYING = ("shmget", "semget", "msgget", "mq_open")

REFUSED = (*_STARTING, *_REACHING_OTHERS, *_MOUNTING, *_ADMINISTERING, *_MARKING_FILES, *_STAYING)
"""Refused with "not permitted", where the machine has them at all."""

ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")
"""Said not to be there. The C library then starts threads by `clone`, whose flags a filter can read; an io_uring
would make the other calls unseen."""

OWN_PROCESS_ONLY = ("kill", "tgkill")

FOREIGN_FROM = 0x40000000
"""From here on lie the numbers of x32, a second table of the same calls."""


@dataclass(frozen=True)
class Architecture:
    """The constant by which the kernel tells a filter the architecture (AUDIT_ARCH_…), and its numbers."""

    audit: int
    numbers: dict[str, int]


def _table(text: str) -> dict[str, int]:
    pairs = (entry.split() for entry in text.replace("\n", " ").split(","))
    return {name: int(number) for name, number in pairs}


# Since Linux 5.1 a new call has the same number everywhere.
_COMMON = _table("""
pidfd_getfd 438, pidfd_send_signal 424, open_tree 428, move_mount 429, fsopen 430, fsconfig 431, fsmount 432,
fspick 433, mount_setattr 442, fchmodat2 452, setxattrat 463, removexattrat 466, clone3 435, io_uring_setup
425, io_uring_enter 426, io_uring_register 427
""")
_X86_64 = _table("""
fork 57, vfork 58, execve 59, execveat 322, ptrace 101, process_vm_readv 310, process_vm_writev 311, tkill
200, rt_sigqueueinfo 129, rt_tgsigqueueinfo 297, setpriority 141, mount 165, umount2 166, pivot_root 155,
chroot 161, setns 308, unshare 272, open_by_handle_at 304, quotactl 179, swapon 167, swapoff 168, init_module
175, finit_module 313, delete_module 176, kexec_load 246, kexec_file_load 320, reboot 169, acct 163,
settimeofday 164, clock_settime 227, clock_adjtime 305, adjtimex 159, sethostname 170, setdomainname 171, iopl
172, ioperm 173, bpf 321, perf_event_open 298, userfaultfd 323, add_key 248, request_key 249, keyctl 250,
chmod 90, fchmod 91, fchmodat 268, chown 92, lchown 94, fchown 93, fchownat 260, truncate 76, utimensat 280,
setxattr 188, lsetxattr 189, fsetxattr 190, removexattr 197, lremovexattr 198, fremovexattr 199, kill 62,
tgkill 234, clone 56, socket 41, prlimit64 302, seccomp 317, shmget 29, semget 64, msgget 68, mq_open 240
""")
_ARM64 = _table("""
execve 221, execveat 281, ptrace 117, process_vm_readv 270, process_vm_writev 271, tkill 130, rt_sigqueueinfo
138, rt_tgsigqueueinfo 240, setpriority 140, mount 40, umount2 39, pivot_root 41, chroot 51, setns 268,
unshare 97, open_by_handle_at 265, quotactl 60, swapon 224, swapoff 225, init_module 105, finit_module 273,
delete_module 106, kexec_load 104, kexec_file_load 294, reboot 142, acct 89, settimeofday 170, clock_settime
112, clock_adjtime 266, adjtimex 171, sethostname 161, setdomainname 162, bpf 280, perf_event_open 241,
userfaultfd 282, add_key 217, request_key 218, keyctl 219, fchmod 52, fchmodat 53, fchown 55, fchownat 54,
truncate 45, utimensat 88, setxattr 5, lsetxattr 6, fsetxattr 7, removexattr 14, lremovexattr 15, fremovexattr
16, kill 129, tgkill 131, clone 220, socket 198, prlimit64 261, seccomp 277, shmget 194, semget 190, msgget
186, mq_open 180
""")

ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, {**_COMMON, **_X86_64}),
    "aarch64": Architecture(0xC00000B7, {**_COMMON, **_ARM64}),
}
