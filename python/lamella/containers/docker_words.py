"""What docker-py's ``containers.run`` calls otherwise, and what of it there is not: for the errors of those who come from there.

docs/coming-from-docker.md shows the same to readers; a test holds the two together.
"""

from __future__ import annotations

RENAMED = {
    "cpuset_cpus": "cpuset",
    "dns_opt": "dns_options",
    "mem_limit": "memory",
    "mem_reservation": "memory_reservation",
    "mem_swappiness": "memory_swappiness",
    "memswap_limit": "memory_swap",
    "nano_cpus": "cpus, in processors",
    "network_mode": "network",
    "security_opt": "no_new_privileges, seccomp, masked_paths and readonly_paths",
    "stdin_open": "stdin",
    "userns_mode": "userns",
}
"""Words for which there is another one here."""

ABSENT = {
    "cpu_count": "it is for Windows",
    "cpu_percent": "it is for Windows",
    "cpu_rt_period": "set it by spec (linux.resources.cpu.realtimePeriod)",
    "cpu_rt_runtime": "set it by spec (linux.resources.cpu.realtimeRuntime)",
    "device_requests": "give the devices and what goes with them by devices and mounts",
    "healthcheck": "there is no daemon that would ask; run the command by exec with a time-out",
    "init_path": "the init is lamella's own",
    "isolation": "it is for Windows",
    "kernel_memory": "the kernel has it no more",
    "links": "containers of a network find each other by name; give both the same one, and network_aliases",
    "lxc_conf": "docker has it no more",
    "network_disabled": "network='none' is the default",
    "networking_config": "give networks, each with ip, ip6, mac_address and aliases",
    "stderr": "a result has stdout and stderr apart, and so have logs",
    "stdout": "a result has stdout and stderr apart, and so have logs",
    "storage_opt": "use the quotas of the file system beneath the store",
    "stream": "give on_output, or start(attach=True), which is an iterator",
    "use_config_proxy": "give the variables by environment or env_file",
    "version": "there is no daemon whose version would matter",
    "volume_driver": "volumes are folders of the store; mount what another driver has on this machine, and bind it",
    "volumes_from": "name the volumes again",
}
"""Words for which there is nothing here, and what to do instead."""


OPTIONS = {
    "attach": "without -d output is shown, and stdin with -i",
    "disable-content-trust": "say by --policy what may come here",
    "gpus": ABSENT["device_requests"],
    "link": ABSENT["links"],
    "link-local-ip": "give --ip",
    "no-healthcheck": "there are no health checks",
    "use-api-socket": "there is no daemon, and so no socket",
}
"""Options of ``docker run`` that are not here and not called as docker-py's words are."""


def explain_option(text: str) -> str | None:
    """Say what to do about an option of ``docker run`` that there is not (``--gpus``, ``--gpus=all``), None for another word."""
    if not text.startswith("--"):
        return None
    name = text[2:].partition("=")[0]
    if name.startswith("health-"):
        name = "healthcheck"
    reason = OPTIONS.get(name) or ABSENT.get(name.replace("-", "_"))
    return f"docker's {text.partition('=')[0]} is not here: {reason}" if reason else None


def explain(word: str) -> str | None:
    """Say what to do about a keyword of docker-py's that there is not, None for one that is not docker-py's."""
    if word in RENAMED:
        return f"docker-py's {word} is called {RENAMED[word]} here"
    return f"docker-py's {word} is not here: {ABSENT[word]}" if word in ABSENT else None
