"""The host around a store, to see that an image changed and read nothing of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

MARK = b"the host's "
"""Every file of the host begins with it, and no file of an image."""


class Host:
    """A folder with everything that an image might want to change; the store lies beside it."""

    def __init__(self, ground: Path) -> None:
        self.ground = ground
        self.outside = ground / "outside"
        for name in ("", "etc", "folder"):
            (self.outside / name).mkdir()
        for name, mode in {
            "secret": 0o640,
            "tool": 0o4755,
            "etc/passwd": 0o644,
            "whitedout": 0o644,
            "folder/inner": 0o600,
        }.items():
            (self.outside / name).write_bytes(MARK + name.encode())
            (self.outside / name).chmod(mode)
        (self.outside / "folder").chmod(0o700)
        (self.outside / "second-name").hardlink_to(self.outside / "secret")
        (self.outside / "link").symlink_to("secret")
        (self.outside / "dangling").symlink_to("nowhere")
        os.mkfifo(self.outside / "fifo", 0o400)
        os.setxattr(self.outside / "secret", "user.lamella", b"kept")
        os.setxattr(self.outside / "folder", "user.lamella", b"kept")
        # An access older than the change: the kernel then records the next one also where it is mounted relatime.
        for path in sorted(self._look(), reverse=True):
            os.utime(path, ns=(10**18, 14 * 10**17), follow_symlinks=False)
        self.before = self._look()

    def differences(self, *trees: Path) -> list[str]:
        """Give what is different from the beginning, and which files beneath ``trees`` are the host's."""
        now = self._look()
        found = [
            f"{path}: {self.before.get(path)} became {now.get(path)}"
            for path in sorted(self.before.keys() | now.keys())
            if self.before.get(path) != now.get(path)
        ]
        for tree in trees:
            for folder, _, names in os.walk(tree):
                for path in (Path(folder, name) for name in names):
                    if stat.S_ISREG(path.lstat().st_mode) and path.read_bytes().startswith(MARK):
                        found.append(f"{path} is the host's")
        return found

    def _look(self) -> dict[str, dict[str, Any]]:
        """Look at every inode without leaving a trace."""
        found = {}
        pending = [str(self.outside)]
        while pending:
            path = pending.pop()
            status = os.lstat(path)
            seen = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
            seen["xattrs"] = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            if stat.S_ISLNK(status.st_mode):
                seen["content"] = os.readlink(path)  # noqa: PTH115 (the text as it is)
                for name in ("st_atime", "st_atime_ns"):  # to look at a symlink is to read it
                    del seen[name]
            elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW)
                try:
                    if stat.S_ISDIR(status.st_mode):
                        pending += [os.path.join(path, name) for name in os.listdir(descriptor)]  # noqa: PTH118
                    else:
                        seen["content"] = os.pread(descriptor, 1 << 20, 0)
                finally:
                    os.close(descriptor)
            found[path] = seen
        return found
