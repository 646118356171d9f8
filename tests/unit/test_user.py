import pytest

from lamella.containers.user import ID_MAX, UserFiles, resolve_user
from lamella.errors import InvalidArgument, ResourceExhausted

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n# note\nbroken:x:a:b\nbig:x:4294967296:0::/:\n"
GROUP = b"root:x:0:\nwheel:x:10:root,app\napp:x:1001:\ndocker:x:999:app\nhuge:x:99999999999:app\n"


def read(path, limit):
    return {"etc/passwd": PASSWD, "etc/group": GROUP}.get(path)


def nothing(path, limit):
    return None


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, [0, 10], "/root"),
        ("root", 0, 0, [0, 10], "/root"),
        ("app", 1000, 1001, [10, 999, 1001], "/srv/app"),
        ("1000", 1000, 1001, [10, 999, 1001], "/srv/app"),
        ("app:docker", 1000, 999, [999], "/srv/app"),
        ("app:0", 1000, 0, [0], "/srv/app"),
        ("4242", 4242, 0, [0], "/"),
        ("4242:4243", 4242, 4243, [4243], "/"),
    ],
)
def test_a_user_resolves_by_the_images_own_files(user, uid, gid, groups, home):
    found = resolve_user(user, read)
    assert (found.uid, found.gid, found.additional_gids, found.home) == (uid, gid, groups, home)


@pytest.mark.parametrize("user", ["", "0", "7:8"])
def test_numbers_need_no_files(user):
    assert resolve_user(user, nothing).uid in (0, 7)


@pytest.mark.parametrize(
    "user",
    [
        "nobody",
        "app:",
        "app:nogroup",
        str(ID_MAX + 1),
        "4294967296",
        "4294967295:0",
        "0:4294967296",
        "9" * 30,
        "-1",
        "1_0",
        "²",
    ],
)
def test_an_unknown_or_overflowing_user_is_refused(user):
    with pytest.raises(InvalidArgument):
        resolve_user(user, read)


@pytest.mark.parametrize(
    "user",
    ["4294967296", "2147483648", "-1", "+0", "+1000", " 1000", "0 ", "\u0660", "²", "9" * 30, "00000000000"],
)
@pytest.mark.parametrize("field", ["passwd", "group"])
def test_what_looks_like_a_number_is_no_name_that_an_image_may_give_to_root(user, field):
    """CVE-2026-46680: a number that did not fit was looked up as a name, and an image could list that with uid 0."""
    lines = {"etc/passwd": f"{user}:x:0:0::/:\n".encode(), "etc/group": f"{user}:x:0:\n".encode()}
    with pytest.raises(InvalidArgument):
        resolve_user(user if field == "passwd" else f"1000:{user}", lambda path, limit: lines[path])


def test_an_id_out_of_range_in_passwd_names_nobody():
    with pytest.raises(InvalidArgument):
        resolve_user("big", read)


def test_a_huge_passwd_is_refused():
    def huge(path, limit):
        raise ResourceExhausted("too large")

    with pytest.raises(InvalidArgument, match="larger than"):
        resolve_user("app", huge)


def test_what_is_beneath_a_new_container_is_read_once():
    asked = []

    def read(layers, path, limit, *, whiteouts):
        asked.append((layers, path))
        return b"root:x:0:0::/root:/bin/sh\n" if path == "etc/passwd" else None

    files = UserFiles(read)
    for own in ("/one", "/two"):
        assert resolve_user("root", files.of([own, "/image", "/base"], "overlay")).home == "/root"
    assert asked == [(["/image", "/base"], "etc/passwd"), (["/image", "/base"], "etc/group")]
    resolve_user("root", files.of(["/one", "/base"], "overlay"))
    assert len(asked) == 4
    for own in ("/one", "/two"):  # a copy of everything, which its container may change
        resolve_user("root", files.of([own], "plain"))
    assert asked[-1] == (["/two"], "etc/group")


def test_of_large_files_and_of_many_images_little_is_kept():
    sizes = {"etc/passwd": UserFiles.LONGEST + 1, "etc/group": 0}
    files = UserFiles(lambda layers, path, limit, *, whiteouts: bytes(sizes[path]))
    for number in range(UserFiles.MOST + 10):
        resolve_user("", files.of(["/own", f"/{number}"], "overlay"))
    assert len(files._known) <= UserFiles.MOST
    assert not any(files._known.values())
