"""lamella: containerd's model as a library.

Pull OCI images, keep their blobs in a content store, build mount-ready snapshots from them and run containers on those
snapshots, from Python, with no daemon::

    import lamella

    with lamella.Client() as client:
        image = client.images.pull("nginx:latest")
        result = client.containers.run(image, ["nginx", "-v"], remove=True, timeout=10)

Names are loaded when they are first used, so that ``import lamella`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, without its import
if TYPE_CHECKING:
    from lamella._core import __version__ as __version__
    from lamella.client import Client as Client
    from lamella.config import Config as Config
    from lamella.containers.container import Container as Container
    from lamella.containers.monitor import Attached as Attached
    from lamella.containers.result import RunResult as RunResult
    from lamella.errors import LamellaError as LamellaError
    from lamella.events import Event as Event
    from lamella.images import Image as Image
    from lamella.reference import Reference as Reference
    from lamella.transfer.progress import Progress as Progress
    from lamella.transfer.totals import Totals as Totals
    from lamella.transfer.transfer import Transfer as Transfer

_HOMES = {
    "Attached": "lamella.containers.monitor",
    "Client": "lamella.client",
    "Config": "lamella.config",
    "Container": "lamella.containers.container",
    "Event": "lamella.events",
    "Image": "lamella.images",
    "LamellaError": "lamella.errors",
    "Progress": "lamella.transfer.progress",
    "Reference": "lamella.reference",
    "RunResult": "lamella.containers.result",
    "Totals": "lamella.transfer.totals",
    "Transfer": "lamella.transfer.transfer",
    "__version__": "lamella._core",
}

__all__ = [
    "Attached",
    "Client",
    "Config",
    "Container",
    "Event",
    "Image",
    "LamellaError",
    "Progress",
    "Reference",
    "RunResult",
    "Totals",
    "Transfer",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lamella' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
