"""The program ``lamella-oci`` that is tested: the one that LAMELLA_OCI names, else the one beside this Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMAND = os.environ.get("LAMELLA_OCI") or str(Path(sys.executable).with_name("lamella-oci"))
