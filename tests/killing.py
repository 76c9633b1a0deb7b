"""Kill a process at a chosen moment of what it writes, fill its disk, and see which processes are left."""

import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path


class Torn:
    """A file whose content is written in two pieces, with a moment between them."""

    def __init__(self, file, moment):
        self.file, self.moment = file, moment

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.moment()
        self.file.write(content[len(content) // 2 :])

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *found):
        self.file.close()


def kill_at(number, *calls):
    """Send SIGKILL at the n-th moment: before and after each call of (holder, name), and in the middle of a content."""
    seen = [0]

    def moment():
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call):
        def wrapped(*args, **options):
            moment()
            found = call(*args, **options)
            moment()
            return Torn(found, moment) if call.__name__ == "open" else found

        return wrapped

    for holder, name in calls:
        setattr(holder, name, watched(getattr(holder, name)))


@contextmanager
def full_disk(most=400):
    """Let no file grow beyond ``most`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def child(act, *, before=lambda: None):
    """Do something in a child process; return how it ended."""
    pid = os.fork()
    if pid == 0:
        before()
        act()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def session_members(session):
    """Return the processes of a session that are still there (start_new_session gives a process one of its own)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found
