"""Which ids a container gets of its own."""

from __future__ import annotations

import pytest

from lamella.containers import id_maps
from lamella.containers.id_maps import SIZE, IdMaps, spec_mappings, wanted_maps
from lamella.containers.options import Options
from lamella.containers.runtime_spec import IdMapping, Mount
from lamella.errors import ResourceExhausted


def maps(text):
    return IdMaps(users=text, groups=text)


def test_a_free_range_is_chosen_and_none_that_another_has_a_part_of(monkeypatch):
    first = id_maps._FIRST
    monkeypatch.setattr(id_maps, "_LAST", first + 4 * SIZE - 1)
    used = [
        maps(f"0:{first}:1"),
        IdMaps(users=f"0:{first + SIZE - 1}:2", groups=f"5:{first + 3 * SIZE + 7}:10"),
    ]
    for _ in range(20):
        found = wanted_maps(Options(userns="auto"), used)
        assert found == maps(f"0:{first + 2 * SIZE}:{SIZE}")
    with pytest.raises(ResourceExhausted):
        wanted_maps(Options(userns="auto"), [*used, maps(f"0:{first + 2 * SIZE + 5}:1")])


def test_users_and_groups_stand_for_each_other_where_one_is_given():
    assert wanted_maps(Options(uid_maps="0:5:1"), []) == maps("0:5:1")
    assert wanted_maps(Options(gid_maps=["0:5:1", "1:7:2"]), []) == maps("0:5:1,1:7:2")
    assert wanted_maps(Options(uid_maps="0:5:1", gid_maps="0:6:1"), []) == IdMaps(
        users="0:5:1", groups="0:6:1"
    )
    assert wanted_maps(Options(userns="auto:size=7"), []).users.endswith(":7")
    assert wanted_maps(Options(userns="host"), []) is None
    assert spec_mappings("0:5:1,1:7:2") == [IdMapping(0, 5, 1), IdMapping(1, 7, 2)]


def test_a_mount_shows_its_files_by_the_maps():
    shown = maps("0:5:1").show(Mount(destination="/a", type="bind", source="/b", options=["rbind"]))
    assert shown.options == ["rbind", "uidmap=0:5:1", "gidmap=0:5:1"]
