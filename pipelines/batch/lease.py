"""One renderer per job, over processes and machines that share an output folder.

A lease is a lock on a file. The kernel gives it back when its holder dies in whatever way, and so
does the server of a network folder (NFS 4, SMB, Lustre with ``flock``) after its grace time, so
nothing has to be cleaned up and no clock is compared.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel.core.strict_json import dumps


def lease_path(out: Path, name: str) -> Path:
    """Return the lease of the job ``name`` in the output folder ``out``."""
    return out / ".accel" / "leases" / f"{name}.lock"


@contextmanager
def lease(path: Path) -> Iterator[bool]:
    """Hold the lease ``path`` for the length of the block; gives False if another holds it.

    Raises OSError for a folder that cannot be written or has no locks.
    """
    descriptor = _acquire(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before the lock is given back, so nobody removes another's
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise OSError(
                error.errno,
                f"{path.parent} has no file locks: {error.strerror}; mount it with them",
            ) from error
        if _is_current(descriptor, path):
            text = dumps({"host": socket.gethostname(), "pid": os.getpid()})
            os.pwrite(descriptor, text.encode(), 0)
            return descriptor
        os.close(descriptor)  # its last holder removed the file between our open and our lock


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether somebody holds the lease now."""
    if not path.exists():
        return False
    with lease(path) as free:
        return not free
