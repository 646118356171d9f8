"""Look at the containers of a store after a power cut: ``containers_after.py TOP``. The state folder was on the disk, too.

TOP is where it was when they were made, whose specs name it. Prints the names of those that could be started.

A process of its own: it starts containers, and keeps files of the state folder open.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lamella.client import Client
from lamella.errors import LamellaError

STATUS = {"created": 7, "ended": 7, "running": 137}


def main(top: Path) -> None:
    with Client(top / "root", top / "state") as client:
        for box in client.containers.list(all=True):
            assert box.status in ("created", "stopped", "unknown"), box.status
            assert box.inspect()
        client.gc()
        assert client.fsck(repair=True).clean
        for box in client.containers.list(all=True):
            try:
                box.start()
            except LamellaError as error:
                assert error.hint, error
            else:
                print(box.name)
                if box.name == "running":  # until somebody ends it
                    box.kill()
                status = box.wait(timeout=60)
                wanted = STATUS.get(box.name, 0)  # the one without a name of its own is that of the short run
                assert status == wanted, (box.name, status, list(box.logs()))
            box.remove(force=True)
        assert client.containers.list(all=True) == []
        for image in client.images.list():
            result = client.containers.run(
                image, ["sh", "-c", "exit 7"], remove=True, timeout=20, check=False
            )
            assert result.exit_code == 7
        assert client.fsck(repair=True).clean
        report = client.fsck()
        assert report.findings == [], report.findings


if __name__ == "__main__":
    main(Path(sys.argv[1]))
