"""Folders that another user could change under us are refused."""

from __future__ import annotations

import builtins
import grp
import os
import pwd
import socket
import struct

import pytest

import lamella
from lamella.errors import PermissionDenied
from lamella.ownership import check_owner

NOBODY = 65534


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Let every test look around its folders, as a new process does."""
    monkeypatch.setattr("lamella.ownership._surroundings", set())


@pytest.fixture
def private(monkeypatch):
    """``private(gid, *members)`` makes a group of this user, and of others."""

    def make(gid, *members):
        user = pwd.getpwuid(os.geteuid())
        groups = {gid: grp.struct_group(("mine", "x", gid, [user.pw_name, *members]))}
        monkeypatch.setattr(grp, "getgrgid", lambda number: groups[number])

    return make


def refused(folder, **match):
    with pytest.raises(PermissionDenied, **match) as caught:
        check_owner(folder)
    return str(caught.value.hint)


def test_a_root_that_everybody_may_write_to_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o1777)
    with pytest.raises(PermissionDenied, match="everybody may write") as caught:
        lamella.Client(root=root, state=tmp_path / "state").images.list()
    assert "chmod" in str(caught.value.hint)
    assert list(root.iterdir()) == []


@pytest.mark.needs_root
def test_a_root_that_a_group_may_write_to_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, -1, NOBODY)
    root.chmod(0o770)
    with pytest.raises(PermissionDenied, match=f"group {NOBODY} may write") as caught:
        lamella.Client(root=root, state=tmp_path / "state").images.list()
    assert f"chmod g-w {root}" in str(caught.value.hint)
    assert list(root.iterdir()) == []


@pytest.mark.needs_root
def test_a_group_that_has_its_user_alone_is_no_other_user(tmp_path, private):
    """As users with the umask 002 have it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, -1, 12345)
    folder.chmod(0o775)
    private(12345)
    check_owner(folder)
    private(12345, "someone")
    assert "chmod g-w" in refused(folder, match="group 12345 may write")


@pytest.mark.needs_root
def test_a_group_that_is_somebodys_first_one_is_of_others(tmp_path, private, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, -1, 12345)
    folder.chmod(0o775)
    private(12345)
    someone = pwd.struct_passwd(("someone", "x", 4242, 12345, "", "/", ""))
    everybody = pwd.getpwall()
    monkeypatch.setattr(pwd, "getpwall", lambda: [*everybody, someone])
    refused(folder, match="group 12345 may write")


def access_list(*entries):
    """Give an access control list (linux/posix_acl_xattr.h) that lets its owner alone do everything, with further entries."""
    usual = {tag: (tag, rights, 0xFFFFFFFF) for tag, rights in ((0x01, 7), (0x04, 5), (0x10, 7), (0x20, 5))}
    named = [one for one in entries if one[0] not in usual]
    usual |= {one[0]: one for one in entries if one[0] in usual}
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *one) for one in sorted([*usual.values(), *named])
    )


def set_list(folder, *entries):
    try:
        os.setxattr(folder, "system.posix_acl_access", access_list(*entries))
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")


@pytest.mark.parametrize(
    ("entry", "who"),
    [((0x02, 7, 4242), "user 4242"), ((0x08, 6, 4243), "group 4243"), ((0x02, 5, 4242), None)],
)
def test_an_access_control_list_that_lets_another_user_write_is_refused(tmp_path, entry, who):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    set_list(folder, entry)
    assert folder.stat().st_mode & 0o020, "the bits of the group are the list's mask"
    if who is None:
        check_owner(folder)
    else:
        assert f"setfacl -b {folder}" in refused(folder, match=f"{who} may write")


@pytest.mark.needs_root
def test_the_group_of_a_folder_counts_with_an_access_control_list_too(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    os.chown(folder, -1, NOBODY)
    set_list(folder, (0x04, 7, 0xFFFFFFFF), (0x02, 5, 4242))
    assert f"setfacl -b {folder}" in refused(folder, match=f"group {NOBODY} may write")


@pytest.mark.needs_root
def test_a_list_that_names_the_folders_own_user_lets_no_other_write(tmp_path):
    above, folder = tmp_path / "above", tmp_path / "above/folder"
    folder.mkdir(parents=True)
    os.chown(above, 4242, 0)
    set_list(above, (0x02, 7, 4242))
    check_owner(folder)


@pytest.mark.needs_root
def test_roots_group_is_root_and_a_group_that_may_not_write_nobody(tmp_path, private):
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    ours.chmod(0o775)
    os.chown(ours, -1, 0)
    others.mkdir(mode=0o755)
    os.chown(others, -1, NOBODY)
    private(0, "someone")
    for folder in (ours, others):
        check_owner(folder)


@pytest.mark.needs_root
def test_what_is_roots_is_nobody_elses_to_a_user(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "tasks").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    check_owner(folder)
    os.chown(folder / "tasks", NOBODY, NOBODY)
    monkeypatch.setattr("lamella.ownership._surroundings", set())
    refused(folder, match="tasks belongs to another user")


@pytest.mark.needs_root
def test_a_socket_may_be_another_users(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    os.chown(folder / "s", NOBODY, NOBODY)
    check_owner(folder)


def test_a_folder_is_looked_around_once_and_another_in_its_place_again(tmp_path, monkeypatch):
    folder, looked = tmp_path / "folder", []
    folder.mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))
    check_owner(folder)
    check_owner(folder)
    assert len(looked) == 1
    folder.rename(tmp_path / "former")
    folder.mkdir()
    check_owner(folder)
    assert len(looked) == 2


def test_names_that_go_or_that_cannot_be_listed_are_nobodys(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "name").touch()
    entries = list(os.scandir(folder))
    (folder / "name").unlink()
    monkeypatch.setattr(os, "scandir", lambda path: entries)
    check_owner(folder)
    monkeypatch.setattr("lamella.ownership._surroundings", set())

    def refuse(path):
        raise builtins.PermissionError

    monkeypatch.setattr(os, "scandir", refuse)
    check_owner(folder)


@pytest.mark.needs_root
def test_what_another_user_has_put_into_a_folder_while_he_could_is_refused(tmp_path):
    folder = tmp_path / "folder"
    (folder / "tasks").mkdir(parents=True)
    os.chown(folder / "tasks", NOBODY, NOBODY)
    assert "chown" in refused(folder, match=f"tasks belongs to another user .uid {NOBODY}")
    os.chown(folder / "tasks", 0, 0)
    check_owner(folder)


def test_a_folder_above_is_sticky_or_nobody_else_may_write_to_it(tmp_path):
    """Who may write to it may put another folder in the place of ours."""
    above, folder = tmp_path / "above", tmp_path / "above/sub/folder"
    folder.mkdir(parents=True)
    above.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for way in (folder, link):
        hint = refused(way, match=f"everybody may write to {above}")
        assert f"chmod o-w {above}" in hint and f"chmod +t {above}" in hint
    above.chmod(0o1777)  # what was refused is looked at again
    for way in (folder, link):
        check_owner(way)


def test_a_folder_that_can_be_reached_by_others_symlinks_alone_is_refused(tmp_path):
    """Where the symlink lies counts, too: it can be exchanged."""
    folder, open_to_all = tmp_path / "folder", tmp_path / "open"
    folder.mkdir()
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "link").symlink_to(folder)
    check_owner(folder)
    refused(open_to_all / "link", match=f"everybody may write to {open_to_all}")


@pytest.mark.needs_root
def test_a_root_of_another_user_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    os.chown(root, NOBODY, NOBODY)
    with pytest.raises(PermissionDenied, match="belongs to another user"):
        lamella.Client(root=root, state=tmp_path / "state").images.list()
    assert list(root.iterdir()) == []


@pytest.mark.privileged
def test_no_container_starts_with_a_state_folder_of_another_user(client, small_image, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o711)
    os.chown(state, NOBODY, NOBODY)
    image = client.images.pull(small_image)
    with pytest.raises(PermissionDenied, match="belongs to another user"):
        client.containers.run(image, ["/bin/true"], remove=True)
    assert list(state.iterdir()) == []


@pytest.mark.privileged
def test_no_container_starts_with_a_state_folder_that_a_group_may_write_to(client, small_image, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, -1, NOBODY)
    state.chmod(0o771)
    image = client.images.pull(small_image)
    with pytest.raises(PermissionDenied, match=f"group {NOBODY} may write"):
        client.containers.run(image, ["/bin/true"], remove=True)
    assert list(state.iterdir()) == []
