"""Every word of docker-py's and docker's is an option here, or one that is explained."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lamella.cli.parser import UsageError, parse
from lamella.cli.run import RUN
from lamella.containers.collection import Containers
from lamella.containers.docker_words import ABSENT, OPTIONS, RENAMED, explain, explain_option
from lamella.containers.options import Options

DOCKER_PY = """
    auto_remove blkio_weight_device blkio_weight cap_add cap_drop cgroup_parent cgroupns command cpu_count cpu_percent
    cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpuset_cpus cpuset_mems detach device_cgroup_rules
    device_read_bps device_read_iops device_write_bps device_write_iops devices device_requests dns dns_opt dns_search
    domainname entrypoint environment extra_hosts group_add healthcheck hostname image init init_path ipc_mode isolation
    kernel_memory labels links log_config lxc_conf mac_address mem_limit mem_reservation mem_swappiness memswap_limit
    mounts name nano_cpus network network_disabled network_mode networking_config oom_kill_disable oom_score_adj
    pid_mode pids_limit platform ports privileged publish_all_ports read_only remove restart_policy runtime security_opt
    shm_size stdin_open stdout stderr stop_signal storage_opt stream sysctls tmpfs tty ulimits use_config_proxy user
    userns_mode uts_mode version volume_driver volumes volumes_from working_dir
"""
"""The keywords of ``containers.run`` in docker-py 7.1: its parameters, RUN_CREATE_KWARGS and RUN_HOST_CONFIG_KWARGS."""

DOCKER_RUN = """
    add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
    cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device
    device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops disable-content-trust dns
    dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval
    health-retries health-start-interval health-start-period health-timeout help hostname init interactive ip ip6 ipc
    isolation kernel-memory label label-file link link-local-ip log-driver log-opt mac-address memory memory-reservation
    memory-swap memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid
    pids-limit platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size
    sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns uts volume
    volume-driver volumes-from workdir
"""
"""The options of ``docker run`` 28 on Linux."""

DOCS = Path(__file__).parents[2] / "docs/coming-from-docker.md"


@pytest.mark.parametrize("word", DOCKER_PY.split())
def test_each_keyword_of_docker_py_is_an_option_or_explained(word):
    known = {*Options.__struct_fields__, *inspect.signature(Containers.run).parameters}
    assert word in known or explain(word), word


@pytest.mark.parametrize("name", DOCKER_RUN.split())
def test_each_option_of_docker_run_is_there_or_explained(name):
    known = {text for action in RUN.parser("lamella run").full().options() for text in action.option_strings}
    assert f"--{name}" in known or explain_option(f"--{name}"), name


def test_what_it_is_called_here_is_an_option_here():
    for words in RENAMED.values():
        for word in words.replace(" and ", ", ").split(", "):
            assert word in Options.__struct_fields__ or word == "in processors", word


def test_the_page_for_those_who_come_from_docker_has_every_word():
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    words = {f"`{word}`": text for word, text in (RENAMED | ABSENT).items()}
    words |= {f"`--{name}`": text for name, text in OPTIONS.items()}
    assert rows == [f"| {word} | {words[word]} |" for word in (row.split(" | ")[0][2:] for row in rows)]
    assert len(rows) == len(words)


def test_an_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"mem_limit.*docker-py's mem_limit is called memory here"):
        Containers._options(None, {"mem_limit": "1g"})
    with pytest.raises(TypeError, match="colour") as caught:
        Containers._options(None, {"colour": "red"})
    assert "docker" not in str(caught.value)
    with pytest.raises(UsageError) as wrong:
        parse(["run", "--storage-opt", "size=1g", "x"])
    assert "--storage-opt is not here" in (wrong.value.hint or "")
    with pytest.raises(UsageError) as wrong:
        parse(["create", "--health-cmd=true", "x"])
    assert "--health-cmd is not here: there is no daemon" in (wrong.value.hint or "")
