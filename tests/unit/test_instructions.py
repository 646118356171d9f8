"""Instructions that change an image's config."""

from __future__ import annotations

import pytest

from lamella.errors import InvalidArgument
from lamella.transfer.instructions import apply_instruction

RUN = {
    "Env": ["PATH=/bin", "A=old"],
    "Cmd": ["/bin/sh"],
    "WorkingDir": "/srv",
    "Labels": {"a": "1"},
    "Other": 1,
}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ('CMD ["a", "b c"]', "Cmd", ["a", "b c"]),
        ("cmd a b", "Cmd", ["/bin/sh", "-c", "a b"]),
        ("CMD []", "Cmd", []),
        ('ENTRYPOINT ["/init"]', "Entrypoint", ["/init"]),
        ("ENV A=new B='two words'", "Env", ["PATH=/bin", "A=new", "B=two words"]),
        ("ENV A new value", "Env", ["PATH=/bin", "A=new value"]),
        ('LABEL b=2 "c d"=3', "Labels", {"a": "1", "b": "2", "c d": "3"}),
        (
            "EXPOSE 80 53/udp 7000-7002",
            "ExposedPorts",
            {"80/tcp": {}, "53/udp": {}, "7000/tcp": {}, "7001/tcp": {}, "7002/tcp": {}},
        ),
        ('VOLUME ["/a b"]', "Volumes", {"/a b": {}}),
        ("VOLUME /a /b", "Volumes", {"/a": {}, "/b": {}}),
        ("USER 5:6", "User", "5:6"),
        ("WORKDIR sub/../other", "WorkingDir", "/srv/other"),
        ("WORKDIR /tmp", "WorkingDir", "/tmp"),
        ("STOPSIGNAL SIGINT", "StopSignal", "SIGINT"),
    ],
)
def test_an_instruction_changes_its_field_and_no_other(text, field, value):
    changed = apply_instruction(RUN, text)
    assert changed[field] == value
    assert {name: other for name, other in changed.items() if name != field} == {
        name: other for name, other in RUN.items() if name != field
    }


@pytest.mark.parametrize(
    "text", ["", "RUN true", "FROM x", "CMD", "EXPOSE http", "EXPOSE 80/smtp", "LABEL a=1 b", "ENV 'a=b"]
)
def test_what_is_no_change_is_refused_by_name(text):
    with pytest.raises(InvalidArgument):
        apply_instruction(RUN, text)
