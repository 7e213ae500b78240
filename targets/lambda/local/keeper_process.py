"""The keeper: a small process that starts, reaps and kills every process of one platform.

It runs as a script with the standard library only, because the platform's own process may hold
torch and many threads: forking that one would be slow and unsafe, while the keeper forks in a
millisecond. It also outlives a `kill -9` of the platform just long enough to clean up: when the
platform's process ends or closes the socket, the keeper kills all it started, removes their
cgroups and the work directory, and ends. Should the keeper itself be killed, the kernel kills its
children (PR_SET_PDEATHSIG).

Requests are JSON datagrams on the socket whose descriptor is argv[1]; argv[2] is the platform's
process id, argv[3:] are directories to remove at the end (cgroups by rmdir, others as trees).
Every request gets exactly one reply.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MAX_REQUEST_BYTES = 1 << 17
# Where a child finds the descriptors that came with its request: from 3 upwards.
FIRST_PASSED_FD = 3
# Above every descriptor that a child may want to have at a fixed number.
PARKING_FD = 100

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve requests until the platform is gone, then clean up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    platform = os.pidfd_open(int(sys.argv[2]))
    directories = sys.argv[3:]
    # Orphans of our children become our children, so that they too are reaped and killed.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)

    statuses: dict[int, int | None] = {}  # None while the child runs
    poll = select.poll()
    for fd in (control.fileno(), platform, wake_read):
        poll.register(fd, select.POLLIN)
    stopping = False
    while not stopping:
        ready = {fd for fd, _ in poll.poll()}
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        reap(statuses)
        if control.fileno() in ready:
            stopping = not answer(control, statuses)
        elif platform in ready:
            stopping = True
    clean_up(directories)
    with contextlib.suppress(OSError):
        control.send(b"{}")


def answer(control: socket.socket, statuses: dict[int, int | None]) -> bool:
    """Carry out one request; False when it was the last one."""
    message, fds, _flags, _address = socket.recv_fds(control, MAX_REQUEST_BYTES, 16)
    if not message:
        return False
    request = json.loads(message)
    reply: dict[str, Any] = {}
    reply_fds: list[int] = []
    match request["op"]:
        case "spawn":
            pid, failure = spawn(request, fds)
            if failure:
                os.waitpid(pid, 0)
                reply = {"error": failure}
            else:
                # Opened before the child can be reaped, so that it surely means this process.
                reply_fds = [os.pidfd_open(pid)]
                reply = {"pid": pid}
                statuses[pid] = None
        case "kill":
            kill_group(request["pid"], statuses, request["procs"])
        case "status":
            status = statuses.get(request["pid"])
            reply = {"status": status}
            if status is not None:
                del statuses[request["pid"]]
        case "stop":
            return False
    for fd in fds:
        os.close(fd)
    socket.send_fds(control, [json.dumps(reply).encode()], reply_fds)
    for fd in reply_fds:
        os.close(fd)
    return True


def spawn(request: dict[str, Any], fds: list[int]) -> tuple[int, str]:
    """Fork and exec; (process id, what went wrong or "")."""
    parent = os.getpid()
    report_read, report_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become(request, fds, parent, report_write)
        except BaseException as error:
            os.write(report_write, f"{type(error).__name__}: {error}".encode()[:4096])
        os._exit(127)
    os.close(report_write)
    # Ends when exec closes the child's copy.
    failure = os.read(report_read, 4096).decode()
    os.close(report_read)
    return pid, failure


def become(request: dict[str, Any], fds: list[int], parent: int, report: int) -> None:
    """Turn the forked child into the requested program; never returns."""
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for procs in request["procs"]:
        with open(procs, "w") as file:  # noqa: PTH123 - pathlib costs start time here
            file.write("0")
    for name, value in request["rlimits"].items():
        kind = getattr(resource, name)
        _soft, hard = resource.getrlimit(kind)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, ceiling))
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    parked = [park(fd) for fd in (null, output, output, *fds)]
    report = park(report)
    for target, fd in enumerate(parked):
        os.dup2(fd, target)
    os.set_inheritable(report, False)
    os.closerange(len(parked), report)
    os.chdir(request["cwd"])
    os.execve(request["argv"][0], request["argv"], request["env"])


def park(fd: int) -> int:
    """A close-on-exec copy of `fd` with a high number."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PARKING_FD)


def kill_group(pid: int, statuses: dict[int, int | None], procs: list[str]) -> None:
    """SIGKILL to a child's process group and to whatever else is in its cgroups."""
    if statuses.get(pid, 0) is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for path in procs:
        with contextlib.suppress(OSError), open(path) as file:  # noqa: PTH123
            for line in file:
                os.kill(int(line), signal.SIGKILL)


def reap(statuses: dict[int, int | None]) -> None:
    """Collect every child that has ended, and kill what is left of its process group.

    The statuses of unknown children (orphans of ours) are dropped.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        pid = ended.si_pid
        if pid in statuses:
            # As long as it has not been reaped, this number means its group and no other.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        _pid, status = os.waitpid(pid, 0)
        if pid in statuses:
            statuses[pid] = status


def clean_up(directories: list[str]) -> None:
    """Kill and reap all children, then remove the cgroups and the work directory."""
    signal.set_wakeup_fd(-1)
    while kill_children():
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)
    for directory in directories:
        remove_directory(directory)


def kill_children() -> bool:
    """SIGKILL to all children; whether there were any."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        children = file.read().split()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    return bool(children)


def remove_directory(directory: str) -> None:
    """Remove a cgroup with its children, or an ordinary tree."""
    if not directory.startswith("/sys/fs/cgroup"):
        import shutil

        shutil.rmtree(directory, ignore_errors=True)
        return
    for attempt in range(50):
        for path, _, _ in os.walk(directory, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)  # noqa: PTH106
        if not os.path.isdir(directory):  # noqa: PTH112
            return
        # Processes that have just died leave their cgroup a moment later.
        time.sleep(0.002 * (attempt + 1))


if __name__ == "__main__":
    main()
