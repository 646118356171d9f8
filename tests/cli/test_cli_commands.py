"""Images, content, snapshots, leases, namespaces and gc through the command, on a real store with a real image."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from program import buffered

from lamella import oci
from lamella.config import Config
from lamella.digest import digest_of
from lamella.errors import InvalidArgument
from lamella.registry.server import RegistryServer
from lamella.structs import encode, to_builtins
from layers import Built, file, tar

if TYPE_CHECKING:
    from pathlib import Path

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


def test_pull_prints_the_image_and_images_ls_lists_it(lamella: Program, small_image: str) -> None:
    done = lamella("pull", small_image).ok()
    name, digest, *size = done.out.split()
    assert (name, digest[:7], size[1]) == (small_image, "sha256:", "MB")
    assert done.err == ""
    lines = lamella("images", "ls").ok().out.splitlines()
    assert lines[0].split() == ["NAME", "DIGEST", "PLATFORM", "SIZE", "CREATED"]
    assert lines[1].split()[:2] == [name, digest[:19]]
    assert lamella("images", "ls", "-q", "--filter", f"target.digest=={digest}").ok().out == f"{name}\n"
    assert lamella("images", "ls", "-q", "--filter", "labels.stage").ok().out == ""
    assert [row["digest"] for row in lamella("--json", "images", "ls").ok().document] == [digest]


def test_words_that_are_no_utf_8_are_wrong_usage_and_others_are_read_in_every_locale(
    lamella: Program,
) -> None:
    result = lamella("containers", "rm", "a\udcff")
    assert (result.status, result.out) == (2, "")
    assert r"b'a\xff' is not UTF-8" in result.err
    misread = "ü".encode().decode("ascii", "surrogateescape")
    assert "'ü'" in lamella("containers", "rm", misread).err


def test_a_root_that_is_no_utf_8_is_refused(lamella: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_ROOT", f"{lamella.root}\udcff")
    with pytest.raises(InvalidArgument, match=r"root folder .* is not UTF-8"):
        Config.load()


def test_tag_names_an_image_once_more(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    name, digest, *_ = lamella("tag", reference, "app:stable").ok().out.split()
    assert (name, digest) == (
        "docker.io/library/app:stable",
        lamella("images", "inspect", reference).ok().document["digest"],
    )
    assert lamella("--json", "tag", "app:stable", "app:other").ok().document["digest"] == digest
    assert lamella("tag", "nowhere", "app:stable").status == 1
    lamella("images", "rm", "app:stable", "app:other").ok()


def test_an_image_is_converted(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    before = lamella("images", "inspect", reference).ok().document
    name, digest, *_ = (
        lamella("images", "convert", "--compression", "zstd", reference, "app:zstd").ok().out.split()
    )
    after = lamella("images", "inspect", "app:zstd").ok().document
    assert (name, digest) == ("docker.io/library/app:zstd", after["digest"])
    assert after["chain_id"] == before["chain_id"]
    assert {layer["mediaType"].rpartition("+")[2] for layer in after["layers"]} == {"zstd"}
    less = (
        lamella("--json", "images", "convert", "--drop-top=1", "--format=docker", reference, "app:less")
        .ok()
        .document
    )
    assert less["diff_ids"] == before["diff_ids"][:-1]
    assert lamella("images", "convert", "--layers", "0-9", reference, "app:none").status == 1
    assert lamella("images", "convert", "--layers", "0", "--drop-top", "1", reference, "app:none").status == 2
    lamella("images", "rm", "--sync", "app:zstd", "app:less").ok()


def test_what_refers_to_an_image_is_listed_and_an_artifact_is_shown(lamella: Program) -> None:
    with RegistryServer() as server:
        built = Built(tar(file("a")))
        reference = built.push(server)
        subject = {
            "mediaType": oci.OCI_MANIFEST,
            "digest": digest_of(built.manifest),
            "size": len(built.manifest),
        }
        empty = server.push_blob("made", b"{}", oci.OCI_EMPTY)
        signed = oci.Manifest(config=empty, layers=[empty], artifact_type="application/signature")
        common = to_builtins(signed) | {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST}
        document = common | {"subject": subject}
        signature = server.push_manifest("made", "signature", encode(document))
        about = common | {"subject": to_builtins(signature)}
        server.push_manifest("made", None, encode(about | {"artifactType": "application/sbom"}))
        lines = lamella("images", "referrers", "--tree", reference).ok().out.splitlines()
        assert [line.split()[-4:-2] for line in lines[1:]] == [
            [signature.digest, "application/signature"],
            [lines[2].split()[1], "application/sbom"],
        ]
        (listed,) = (
            lamella("--json", "images", "referrers", "--type", "application/signature", reference)
            .ok()
            .document
        )
        assert (listed["digest"], listed["artifactType"]) == (signature.digest, "application/signature")
        assert lamella("--json", "images", "referrers", "--type", "other", reference).ok().document == []
        artifact = f"{server.address}/made:signature"
        refused = lamella("pull", artifact)
        assert refused.status == 1 and "--no-unpack" in refused.err
        lamella("pull", "--no-unpack", artifact).ok()
        assert (
            lamella("images", "inspect", artifact).ok().document["artifact_type"] == "application/signature"
        )
        assert lamella("content", "get", empty.digest).ok().out == "{}"
        lamella("pull", "--all-platforms", "--referrers", reference).ok()
        assert len(lamella("--json", "images", "referrers", "--local", reference).ok().document) == 1
        (row,) = (row for row in lamella("--json", "images", "ls").ok().document if row["name"] == reference)
        assert row["platforms"] == [row["platform"]]


def test_a_policy_file_says_what_may_be_fetched(
    lamella: Program, small_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text("[allow]\nregistries = ['docker.io/library']")
    refused = lamella("pull", "--policy", str(rules), small_image)
    assert (refused.status, refused.out) == (1, "")
    assert "not among the registries" in refused.err and "docker.io/library" in refused.err
    assert lamella("run", "--policy", str(rules), "--rm", small_image, "true").status != 0
    monkeypatch.setenv("LAMELLA_POLICY", str(rules))
    assert lamella("pull", small_image).status == 1
    rules.write_text("[allow]\nregistries = ['127.0.0.1:*']")
    lamella("pull", small_image).ok()
    rules.write_text("[allow]\nregistry = ['127.0.0.1:*']")
    wrong = lamella("pull", small_image)
    assert wrong.status == 1 and str(rules) in wrong.err and "registry" in wrong.err


def test_images_inspect_has_what_snapshots_need(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    document = lamella("images", "inspect", reference).ok().document
    assert document == lamella("--json", "image", "inspect", reference).ok().document
    assert document["name"] == reference
    assert document["chain_id"] == document["chain_ids"][-1]
    assert len(document["diff_ids"]) == len(document["layers"]) == len(document["chain_ids"])
    assert document["digest"].startswith("sha256:")


def test_pull_without_unpacking_makes_no_snapshots(lamella: Program, small_image: str) -> None:
    document = lamella("--json", "pull", "--no-unpack", small_image).ok().document
    assert lamella("--json", "snapshots", "ls").ok().document == []
    blobs = {row["digest"] for row in lamella("--json", "content", "ls").ok().document}
    assert {document["digest"], *(layer["digest"] for layer in document["layers"])} <= blobs


def test_pull_can_discard_the_compressed_layers(lamella: Program, small_image: str) -> None:
    document = lamella("--json", "pull", "--discard-layers", small_image).ok().document
    assert document["layers_discarded"] is True
    layer = document["layers"][0]["digest"]
    assert layer not in {row["digest"] for row in lamella("--json", "content", "ls").ok().document}
    done = lamella("content", "get", layer)
    assert done.status == 1
    assert f"lamella pull {small_image}" in done.err
    assert lamella("pull", "--discard-layers", "--no-unpack", small_image).status == 2
    assert lamella("--json", "pull", small_image).ok().document["layers_discarded"] is False
    lamella("content", "get", layer).ok()


def test_content_get_gives_the_bytes_of_a_blob(pulled: tuple[Program, str], tmp_path: Path) -> None:
    lamella, reference = pulled
    document = lamella("images", "inspect", reference).ok().document
    manifest = lamella("content", "get", document["digest"]).ok().out
    assert json.loads(manifest)["layers"][0]["digest"] == document["layers"][0]["digest"]
    layer = document["layers"][0]["digest"]
    lamella("content", "get", "-o", str(tmp_path / "layer"), layer).ok()
    assert f"sha256:{hashlib.sha256((tmp_path / 'layer').read_bytes()).hexdigest()}" == layer


def test_content_can_be_labelled_and_removed(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    digest = lamella("images", "inspect", reference).ok().document["digest"]
    labels = lamella("--json", "content", "label", digest, "a=1", "b=2").ok().document["labels"]
    assert (labels["a"], labels["b"]) == ("1", "2")
    assert "a" not in lamella("--json", "content", "label", digest, "a=").ok().document["labels"]
    assert lamella("content", "ls", "-q", "--filter", f"digest=={digest}").ok().out == f"{digest}\n"
    malformed = lamella("content", "ls", "--filter", "=")
    assert (malformed.status, malformed.err[:9]) == (1, "lamella: ")
    assert lamella("content", "rm", digest).ok().out == f"{digest}\n"
    missing = lamella("content", "rm", digest)
    assert (missing.status, missing.out) == (1, "")
    assert digest in missing.err


def test_content_active_lists_an_interrupted_write(lamella: Program) -> None:
    from lamella import Client

    with (
        Client(root=lamella.root, state=lamella.state) as client,
        client.content.writer("upload-1", size=10) as ingest,
    ):
        ingest.write(b"four")
    (row,) = lamella("--json", "content", "active").ok().document
    assert (row["ref"], row["offset"], row["size"]) == ("upload-1", 4, 10)
    assert lamella("content", "active").ok().out.splitlines()[1].split()[:5] == [
        "upload-1",
        "4",
        "B",
        "10",
        "B",
    ]


def test_the_life_of_a_snapshot(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    parent = lamella("images", "inspect", reference).ok().document["chain_id"]
    mounts = lamella("--json", "snapshots", "prepare", "work", parent, "--label", "a=b").ok().document
    assert [set(mount) for mount in mounts] == [{"type", "source", "options"}]
    assert mounts == lamella("--json", "snapshots", "mounts", "work").ok().document
    assert mounts[0]["type"] == "overlay"
    info = lamella("snapshots", "info", "work").ok().document
    assert (info["kind"], info["parent"], info["labels"]["a"]) == ("active", parent, "b")
    assert lamella("snapshots", "usage", "work").ok().out.splitlines()[1].split()[0] == "work"
    assert lamella("snapshots", "commit", "base", "work").ok().out == "base\n"
    view = lamella("snapshots", "view", "reading", "base").ok().out.splitlines()
    assert (view[0].split(), view[1].split()[0]) == (["TYPE", "SOURCE", "OPTIONS"], "overlay")
    assert [row["name"] for row in lamella("--json", "snapshots", "ls", "--kind", "view").ok().document] == [
        "reading"
    ]
    assert lamella("snapshots", "ls", "-q", "--parent", "base").ok().out == "reading\n"
    assert lamella("snapshots", "ls", "-q", "--filter", 'parent=="base"').ok().out == "reading\n"
    busy = lamella("snapshots", "rm", "base")
    assert busy.status == 1
    assert busy.err.startswith("lamella: ")
    assert lamella("snapshots", "rm", "reading", "base").ok().out == "reading\nbase\n"


def test_the_tree_shows_who_stands_on_whom(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    chain = lamella("images", "inspect", reference).ok().document["chain_ids"]
    lamella("snapshots", "prepare", "work", chain[-1]).ok()
    lamella("snapshots", "view", "look", chain[0]).ok()
    lines = lamella("snapshots", "tree").ok().out.splitlines()
    drawn = [line.split("  ")[0].rstrip() if not line.startswith(" ") else line.rstrip() for line in lines]
    assert lines[0].split() == ["NAME", "KIND", "SIZE"]
    assert drawn[1].startswith(chain[0][:19])
    assert any(line.startswith(("├─ look", "└─ look")) for line in lines)
    assert sum("─ work" in line for line in lines) == 1
    nodes = lamella("--json", "snapshots", "tree", chain[-1]).ok().document
    assert nodes[0]["size"] == lamella("snapshots", "info", chain[-1]).ok().document["usage"]["size"] > 0
    assert [(node["name"], node["depth"]) for node in nodes] == [(chain[-1], 0), ("work", 1)]


def test_one_failure_does_not_keep_from_the_rest(lamella: Program) -> None:
    lamella("snapshots", "prepare", "a").ok()
    done = lamella("snapshots", "rm", "nowhere", "a")
    assert (done.status, done.out) == (1, "a\n")
    assert len(done.err.splitlines()) <= 2
    assert "nowhere" in done.err
    assert lamella("--json", "snapshots", "rm", "nowhere").document == []


def test_leases(lamella: Program) -> None:
    assert lamella("leases", "create", "--expires", "24h", "--label", "a=b", "job").ok().out == "job\n"
    unnamed = lamella("--json", "leases", "create").ok().document
    rows = {row["id"]: row for row in lamella("--json", "leases", "ls").ok().document}
    assert set(rows) == {"job", unnamed["id"]}
    assert rows["job"]["labels"] == {"a": "b"}
    assert rows["job"]["expires_at"]
    assert unnamed["expires_at"] is None
    assert lamella("leases", "ls").ok().out.splitlines()[0].split() == ["ID", "CREATED", "EXPIRES", "LABELS"]
    assert [row["id"] for row in lamella("--json", "leases", "ls", "--filter", "labels.a").ok().document] == [
        "job"
    ]
    assert lamella("leases", "rm", "--sync", "job").ok().out == "job\n"
    assert lamella("lease", "rm", "job").status == 1


def test_namespaces_separate_what_they_hold(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    assert lamella("-n", "other", "images", "ls", "-q").ok().out == ""
    assert lamella("namespaces", "create", "--label", "owner=ci", "tests").ok().out == "tests\n"
    rows = {row["name"]: row["labels"] for row in lamella("--json", "namespaces", "ls").ok().document}
    assert rows["tests"] == {"owner": "ci"}
    assert "default" in rows
    full = lamella("namespaces", "rm", "default")
    assert (full.status, "not empty" in full.err) == (1, True)
    assert lamella("namespaces", "rm", "tests").ok().out == "tests\n"
    assert lamella("images", "ls", "-q").ok().out == f"{reference}\n"


def test_gc_says_what_it_would_remove_and_then_removes_it(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    document = lamella("images", "inspect", reference).ok().document
    assert lamella("images", "rm", reference).ok().out == f"{reference}\n"
    would = lamella("--json", "gc", "--dry-run").ok().document
    assert would["dry_run"] is True
    assert would["bytes_freed"] > 0
    listed = lamella("gc", "--dry-run").ok().out
    assert f"blob {document['digest']}" in listed.splitlines()
    assert len(lamella("--json", "content", "ls").ok().document) > 0
    assert len(lamella("gc").ok().out.splitlines()) == 1
    assert lamella("--json", "content", "ls").ok().document == []
    assert lamella("--json", "snapshots", "ls").ok().document == []
    assert lamella("--json", "gc").ok().document["bytes_freed"] == 0


def test_graph_draws_the_image_in_every_form(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    document = lamella("images", "inspect", reference).ok().document
    lamella("snapshots", "view", "nginx-readonly-snapshot", document["chain_id"]).ok()
    mermaid = lamella("graph", reference).ok().out
    assert mermaid.startswith("flowchart TD\n")
    assert "view<br/>nginx-readonly-snapshot" in mermaid
    assert lamella("graph", reference, "--format", "dot").ok().out.startswith("digraph lamella {\n")
    data = lamella("--json", "graph").ok().document
    assert set(data) == {"nodes", "edges"}
    assert {
        "id": f"image:{reference}",
        "kind": "image",
        "label": reference,
        "size": None,
        "detail": "",
    } in data["nodes"]


def test_version_names_what_a_bug_report_needs(lamella: Program) -> None:
    from lamella import __version__

    document = lamella("--json", "version").ok().document
    assert document["version"] == __version__
    assert lamella("version").ok().out.startswith(f"lamella {__version__} ")
    assert lamella("--version").ok().out == lamella("version").ok().out


def test_doctor_passes_here(lamella: Program) -> None:
    document = lamella("--json", "doctor").ok().document
    assert document["ok"] is True
    assert {check["status"] for check in document["checks"]} <= {"ok", "warn"}
    assert len(lamella("doctor").ok().out.splitlines()) >= len(document["checks"])


def test_doctor_fails_with_a_remedy(lamella: Program) -> None:
    lamella.root = lamella.root.with_name("file")
    lamella.root.write_text("a file in the store's place")
    done = lamella("doctor")
    assert done.status == 1
    line = next(at for at, line in enumerate(done.out.splitlines()) if line.startswith("FAIL  store"))
    assert done.out.splitlines()[line + 1].strip().startswith("-> ")
    assert lamella("--json", "doctor").document["ok"] is False


def test_a_registry_that_is_not_there_is_one_clear_error(lamella: Program) -> None:
    done = lamella("pull", "127.0.0.1:1/nothing:here")
    assert (done.status, done.out) == (1, "")
    first, *rest = done.err.splitlines()
    assert first.startswith("lamella: ")
    assert "127.0.0.1:1" in first
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)


def test_an_image_that_is_not_here_is_one_clear_error_with_a_hint(lamella: Program) -> None:
    done = lamella("images", "inspect", "nginx")
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines() == [
        "lamella: image docker.io/library/nginx:latest is not in namespace default",
        "hint: Fetch it: lamella pull docker.io/library/nginx:latest",
    ]


def test_verbose_shows_where_an_error_came_from(lamella: Program) -> None:
    done = lamella("-v", "images", "inspect", "nginx")
    assert done.status == 1
    assert "Traceback" in done.err
    assert "lamella: image docker.io/library/nginx:latest is not in namespace default" in done.err


def test_a_defect_is_one_line_too_and_asks_to_be_reported(
    lamella: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(images: object, **_: object) -> None:
        raise AttributeError("nothing of this name")

    monkeypatch.setattr("lamella.images.Images.list", broken)
    done = lamella("images", "ls")
    assert done.status == 1
    assert done.err.splitlines() == [
        "lamella: a defect: AttributeError: nothing of this name",
        "hint: Run it again with 'lamella -v' in front, and report what that shows.",
    ]
    assert "Traceback" in lamella("-v", "images", "ls").err


@pytest.mark.parametrize("words", [["snapshots", "ls"], ["completion", "bash"], ["run", "--help"]])
def test_the_end_of_the_reader_ends_the_command_quietly(words: list[str], lamella: Program) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            lamella.argv(*words),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=buffered(),
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_du_names_the_image_and_the_store(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    lamella("snapshots", "prepare", "work").ok()
    lines = [line.split() for line in lamella("du").ok().out.splitlines()]
    assert [reference] in [line[:1] for line in lines]
    assert ["work", "active"] in [line[:2] for line in lines]
    assert ["total"] in [line[:1] for line in lines]
    document = lamella("--json", "du").ok().document
    (image,) = document["images"]
    assert image["name"] == reference
    assert image["compressed_alone"] == lamella("--json", "images", "ls").ok().document[0]["size"]
    assert document["store"]["blobs"] >= image["compressed_alone"]


def test_a_closed_stdout_is_no_defect(lamella: Program) -> None:
    line = " ".join(lamella.argv("snapshots", "ls")) + " >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_fields_of_lists_have_the_names_that_scripts_rely_on(pulled: tuple[Program, str]) -> None:
    lamella, _ = pulled
    lamella("snapshots", "prepare", "work").ok()
    lamella("leases", "create", "job").ok()
    fields = {
        "images": "name digest media_type platform platforms size labels created_at updated_at",
        "content": "digest size labels created_at updated_at",
        "snapshots": "name parent kind labels created_at updated_at",
        "leases": "id labels created_at expires_at",
        "namespaces": "name labels created_at updated_at",
    }
    for noun, names in fields.items():
        for row in lamella("--json", noun, "ls").ok().document:
            assert set(row) == set(names.split()), noun


@pytest.mark.privileged
def test_verbose_shows_changes_and_twice_verbose_every_step(lamella: Program, small_image: str) -> None:
    quiet = lamella("pull", small_image).ok()
    assert quiet.err == ""
    once = lamella("-v", "pull", small_image).ok()
    assert " INFO lamella.transfer: pulled " in once.err
    assert " DEBUG " not in once.err
    twice = lamella("-vv", "pull", small_image).ok()
    assert " INFO lamella.transfer: pulled " in twice.err
    assert " DEBUG lamella.registry: HEAD " in twice.err
    assert "urllib3" not in twice.err
    assert once.out == twice.out == quiet.out
    assert lamella("pull", small_image).ok().err == ""


def test_what_a_log_record_quotes_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from lamella.cli.verbose import start_logging
    from lamella.logs import Log

    stop = start_logging(every_step=False)
    Log("lamella.registry").info("it says: %(reason)s", reason="\x1b[31mno\nlamella: all is well")
    stop()
    Log("lamella.registry").info("nobody listens any more")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" INFO lamella.registry: it says: \\x1b[31mno lamella: all is well")


def test_a_warning_is_one_remark_on_stderr_unless_it_is_to_be_quiet(
    lamella: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamella.images import Images
    from lamella.logs import Log

    def warn(_: Images, **_options: object) -> list[object]:
        Log("lamella").warning("%(reason)s", reason="a\x1b[31m\nb")
        return []

    monkeypatch.setattr(Images, "list", warn)
    assert lamella("images", "ls").ok().err == "lamella: warning: a\\x1b[31m b\n"
    assert lamella("-q", "images", "ls").ok().err == ""
    assert " WARNING lamella: a\\x1b[31m b\n" in lamella("-v", "images", "ls").ok().err


def test_what_changes_leave_out_is_a_warning_beside_them(lamella, tmp_path):
    lamella("snapshots", "prepare", "work").ok()
    folder = lamella("snapshots", "mounts", "work", "--json").ok().document[0]["source"]
    os.mkfifo(f"{folder}/fifo")
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("door")
    warning = "lamella: warning: snapshot work: 'door' is a socket and was left out\n"
    listed = lamella("snapshots", "diff", "work").ok()
    assert (listed.out, listed.err) == ("C /\nA /fifo\n", warning)
    assert lamella("snapshots", "diff", "work", "-o", str(tmp_path / "layer")).ok().err == warning
    assert lamella("-q", "snapshots", "diff", "work").ok().err == ""
