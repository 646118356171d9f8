"""``lamella-oci``: the launcher as an OCI runtime on the command line, for podman, containerd and whoever else calls one.

The command is Rust (``rust/launcher/src/oci``). It is the executable that the extension module carries; this process becomes it.
"""

import sys

from lamella._core import become_launcher


def main() -> None:
    """Become the launcher in its role as ``lamella-oci``. Returns only by raising."""
    become_launcher(["lamella-oci", *sys.argv[1:]])
