"""Containers: image config and options -> OCI runtime spec -> active snapshot -> launcher -> task.

container
    The record: image, snapshot key, runtime spec, labels. It may exist with no task.
task
    The running process tree of a container, with a monitor of ours as its parent. When nothing runs, nothing of ours runs.

On disk::

    <state>/tasks/<namespace>/<container>/       the OCI bundle: config.json, rootfs/ (an empty mount point);
                                                 the monitor adds control.sock, lock (held while it lives), pid,
                                                 restart.json (between and after further runs) and exit.json
    <root>/containers/<namespace>/<container>/   log.jsonl, log.jsonl.<number>, exit.json: what must survive a reboot;
                                                 hosts, hostname and resolv.conf: what the container may write

Locks: the monitor's flock on ``lock`` says whether the task runs; one on the folder itself serializes start and remove.
"""
