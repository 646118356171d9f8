"""Images for other machines: refused unless the kernel has an emulator for their programs."""

from __future__ import annotations

import os

import pytest

from lamella.containers import emulation
from lamella.errors import Unsupported
from lamella.oci import Platform

AARCH64 = """enabled
interpreter /usr/libexec/qemu-aarch64
flags: POCF
offset 0
magic 7f454c460201010300000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
JAR = "enabled\ninterpreter /usr/bin/jexec\nflags: \noffset 0\nmagic 504b0304\n"
BY_NAME = "enabled\ninterpreter /usr/bin/wine\nflags: \nextension .exe\n"


@pytest.fixture(autouse=True)
def amd64(monkeypatch):
    """Be on an amd64 machine, whatever this one is."""
    names = os.uname()
    there = os.uname_result((*names[:4], "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: there)


@pytest.fixture
def binfmt(tmp_path):
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "register").write_text("")
    (tmp_path / "jar").write_text(JAR)
    (tmp_path / "by-name").write_text(BY_NAME)
    (tmp_path / "qemu-aarch64").write_text(AARCH64)
    return tmp_path


@pytest.mark.parametrize(
    "platform",
    [("linux", "amd64"), ("linux", "x86_64"), ("linux", "386"), ("linux", "amd64", "v2"), ("", "")],
)
def test_what_the_processor_runs_passes(platform, tmp_path):
    emulation.check_runnable(Platform(*platform), binfmt=tmp_path)


def test_an_emulator_makes_the_programs_of_its_architecture_run(binfmt):
    emulation.check_runnable(Platform("linux", "arm64"), binfmt=binfmt)
    emulation.check_runnable(Platform("linux", "aarch64", "v8"), binfmt=binfmt)
    for other in ("arm", "s390x", "ppc64le", "nonsense"):
        with pytest.raises(Unsupported, match=f"linux/{other}.*linux/amd64"):
            emulation.check_runnable(Platform("linux", other), binfmt=binfmt)


@pytest.mark.parametrize("name", ["qemu-aarch64", "status"])
def test_an_emulator_that_is_switched_off_is_none(name, binfmt):
    path = binfmt / name
    path.write_text(path.read_text().replace("enabled", "disabled"))
    with pytest.raises(Unsupported):
        emulation.check_runnable(Platform("linux", "arm64"), binfmt=binfmt)


def test_another_system_is_refused_and_so_is_everything_without_binfmt_misc(binfmt, tmp_path):
    with pytest.raises(Unsupported, match="windows"):
        emulation.check_runnable(Platform("windows", "amd64"), binfmt=binfmt)
    with pytest.raises(Unsupported, match="arm64") as caught:
        emulation.check_runnable(Platform("linux", "arm64"), binfmt=tmp_path / "none")
    assert "binfmt_misc" in (caught.value.hint or "")
