"""What is built once a machine, and kept in the cache."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path


def built_once(target: Path, build: Callable[[Path], Path]) -> Path:
    """Give a folder, which ``build`` makes where it is missing: in a folder of its own, of which it returns the part to keep.

    It appears by rename; of several that build at once the first one wins.
    """
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as work:
            built = build(Path(work))
            try:
                built.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    return target
