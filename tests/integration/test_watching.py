"""What a pull, a container and a collection leave in metrics, traces and logs; and that no secret is in any of them."""

from __future__ import annotations

import base64
import json
import logging

import pytest
from registries import Reply, ScriptedServer, TokenServer, push_image

import lamella
from lamella.errors import CommandNotFound, LamellaError, NotFound
from lamella.metrics import exposition
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

SECRET = "hunter2-very-secret"


def counts(client):
    """Give every counter that is not zero, and how many values each histogram has."""
    found = {}
    for metric in client.metrics():
        for sample in metric.samples:
            number = sample.count if metric.type == "histogram" else sample.value
            if number and metric.type != "gauge":
                found[" ".join([metric.name.removeprefix("lamella_"), *sample.labels.values()])] = number
    return found


def gauge(client, name, **labels):
    metric = next(metric for metric in client.metrics() if metric.name == name)
    return next(sample.value for sample in metric.samples if sample.labels == labels)


@pytest.fixture
def box(client, small_image):
    client.images.pull(small_image)
    with_sleep = client.containers.run(small_image, ["sleep", "600"], detach=True)
    yield with_sleep
    with_sleep.remove(force=True)


def test_pulls_are_counted_with_their_bytes_and_layers(client, small_image, tmp_path):
    image = client.images.pull(small_image)
    layers = len(image.layers)
    found = counts(client)
    assert found["pulls_total pulled"] == found["pull_duration_seconds pulled"] == 1
    assert found["blob_requests_total miss"] == layers
    assert found["layer_requests_total unpacked"] == layers
    assert found["layer_duration_seconds"] == layers
    assert found["downloaded_bytes_total"] == sum(layer.size for layer in image.layers)
    assert found["unpacked_bytes_total"] > found["downloaded_bytes_total"]

    client.images.pull(small_image)
    again = counts(client)
    assert again["pulls_total present"] == again["pull_duration_seconds present"] == 1
    assert again["downloaded_bytes_total"] == found["downloaded_bytes_total"]

    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state", namespace="other") as other:
        other.images.pull(small_image)
        elsewhere = counts(other)
    assert elsewhere["pulls_total pulled"] == 2
    assert elsewhere["blob_requests_total hit"] == elsewhere["layer_requests_total shared"] == layers
    assert elsewhere["downloaded_bytes_total"] == found["downloaded_bytes_total"]
    assert not any(name.startswith("errors") for name in elsewhere)


def test_a_failed_pull_is_counted_by_its_error(client, small_image):
    with pytest.raises(NotFound):
        client.images.pull(small_image.replace("machine", "no-such"))
    found = counts(client)
    assert found["pulls_total error"] == found["errors_total pull NotFound"] == 1
    assert "pull_duration_seconds pulled" not in found


def test_containers_and_their_snapshots_are_counted(client, box):
    found = counts(client)
    assert found["container_starts_total ok"] == found["container_start_duration_seconds"] == 1
    assert (
        found["snapshot_operations_total prepare"] == found["snapshot_prepare_duration_seconds active"] == 1
    )
    client.snapshots.mounts(box.snapshot_key)  # a start asks for none: it knows them from their making
    assert counts(client)["snapshot_operations_total mounts"] == 1
    assert gauge(client, "lamella_running_containers", namespace="default") == 1
    assert gauge(client, "lamella_containers", namespace="default") == 1

    assert box.exec(["true"]).exit_code == 0
    with pytest.raises(CommandNotFound):
        box.exec(["no-such-program"])
    found = counts(client)
    assert found["execs_total ok"] == found["exec_start_duration_seconds"] == 1
    assert found["execs_total error"] == found["errors_total exec CommandNotFound"] == 1

    box.stop(0)
    assert gauge(client, "lamella_running_containers", namespace="default") == 0
    with pytest.raises(CommandNotFound):
        client.containers.run(box.image, ["no-such-program"])
    found = counts(client)
    assert found["container_starts_total error"] == found["errors_total start CommandNotFound"] == 1


def test_collections_are_counted_with_what_they_removed(client, small_image):
    image = client.images.pull(small_image)
    layers = len(image.layers)
    client.gc(dry_run=True)
    assert "gc_runs_total ok" not in counts(client)
    before = counts(client)["transaction_duration_seconds"]
    client.images.remove(small_image)
    report = client.gc()
    found = counts(client)
    assert found["gc_runs_total ok"] == found["gc_duration_seconds"] == 1
    assert found["gc_removed_total blobs"] == report.blobs
    assert found["gc_removed_total layers"] == found["gc_removed_total snapshots"] == layers
    assert found["gc_freed_bytes_total"] == report.bytes_freed
    assert found["gc_pause_seconds"] >= 3
    assert found["transaction_duration_seconds"] == before + 1


def test_a_pull_is_a_tree_of_spans_over_its_threads(client, small_image, spans):
    image = client.images.pull(small_image)
    ended = {}
    for span in spans():
        ended.setdefault(span.name, []).append(span)
    (pull,) = ended["lamella.pull"]
    assert dict(pull.attributes) == {
        "container.image.name": image.name,
        "oci.manifest.digest": image.manifest_descriptor.digest,
    }
    assert [span.parent.span_id for span in ended["lamella.resolve"]] == [pull.context.span_id]
    layers = ended["lamella.layer"]
    assert {span.parent.span_id for span in layers} == {pull.context.span_id}
    assert {span.attributes["lamella.layer.digest"] for span in layers} == {
        layer.digest for layer in image.layers
    }
    assert {span.attributes["lamella.layer.blob"] for span in layers} == {"miss"}


def test_push_copy_and_conversion_have_a_span_that_names_their_target(client, small_image, spans):
    image = client.images.pull(small_image)
    with RegistryServer() as server:
        names = f"{server.address}/pushed:1", f"{server.address}/copied:1", "docker.io/library/converted:1"
        client.images.push(small_image, names[0])
        client.images.copy(small_image, names[1])
        client.images.convert(small_image, names[2], format="docker")
    found = {span.name: dict(span.attributes) for span in spans()}
    for kind, name in zip(("push", "copy", "convert"), names, strict=True):
        attributes = found[f"lamella.{kind}"]
        assert (attributes["container.image.name"], attributes["lamella.target"]) == (image.name, name)


def test_running_a_container_is_a_tree_of_spans(client, small_image, spans):
    client.images.pull(small_image)
    client.containers.run(small_image, ["true"], remove=True)
    box = client.containers.run(small_image, ["sleep", "600"], detach=True)
    box.exec(["true"])
    box.remove(force=True)
    client.gc()
    ended = spans()
    names = {span.context.span_id: span.name for span in ended}
    tree = [(span.name, names.get(span.parent.span_id) if span.parent else None) for span in ended]
    assert [each for each in tree if each[0] not in ("lamella.layer", "lamella.resolve", "lamella.pull")] == [
        ("lamella.prepare", "lamella.container.create"),
        ("lamella.container.create", "lamella.container.run"),
        ("lamella.container.start", "lamella.container.run"),
        ("lamella.remove", "lamella.container.run"),
        ("lamella.container.run", None),
        ("lamella.prepare", "lamella.container.create"),
        ("lamella.container.create", "lamella.container.run"),
        ("lamella.container.start", "lamella.container.run"),
        ("lamella.container.run", None),
        ("lamella.exec.start", "lamella.exec"),
        ("lamella.exec", None),
        ("lamella.remove", None),
        ("lamella.gc", None),
    ]
    start = [span for span in ended if span.name == "lamella.container.start"][-1]
    assert (start.attributes["container.id"], start.attributes["container.name"]) == (box.id, box.name)


def test_a_failed_start_is_an_error_in_every_span_around_it(client, small_image, spans):
    client.images.pull(small_image)
    with pytest.raises(CommandNotFound):
        client.containers.run(small_image, ["no-such-program"])
    failed = {span.name: span for span in spans() if not span.status.is_unset}
    assert list(failed) == ["lamella.container.start", "lamella.container.run"]
    assert failed["lamella.container.start"].attributes["error.type"] == "CommandNotFound"


def test_changes_are_logged_as_info_and_steps_as_debug(client, small_image, caplog):
    caplog.set_level(logging.DEBUG, "lamella")
    image = client.images.pull(small_image)
    digest, layers = image.manifest_descriptor.digest, image.layers
    box = client.containers.run(small_image, ["sleep", "600"], detach=True)
    box.remove(force=True)
    client.images.remove(small_image)
    client.gc()
    seen = [(record.name, record.getMessage()) for record in caplog.records if record.levelname == "INFO"]
    assert [name for name, _ in seen] == [
        "lamella.transfer",
        "lamella.containers",
        "lamella.containers",
        "lamella",
        "lamella",
    ]
    assert [message.split()[0] for _, message in seen] == [
        "pulled",
        "started",
        "removed",
        "removed",
        "collected",
    ]
    pulled, started = [record for record in caplog.records if record.levelname == "INFO"][:2]
    assert (pulled.image, pulled.result, pulled.digest) == (
        image.name,
        "pulled",
        digest,
    )
    assert (started.container, started.container_name, started.image) == (box.id, box.name, image.name)
    steps = {record.name for record in caplog.records if record.levelname == "DEBUG"}
    assert {"lamella.registry", "lamella.transfer", "lamella.snapshots", "lamella.containers"} <= steps
    requests = [record for record in caplog.records if record.name == "lamella.registry"]
    assert {record.status for record in requests} == {200}
    assert any(record.path.endswith(f"/blobs/{layers[0].digest}") for record in requests)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def everything(client, caplog, ended):
    """Give all that was said, as text."""
    said = [json.dumps(vars(record), default=str) + record.getMessage() for record in caplog.records]
    traced = [span.to_json() for span in ended]
    return "\n".join([*said, *traced, exposition(client)])


@pytest.mark.parametrize("password", [SECRET, "wrong-but-secret"])
def test_credentials_and_tokens_are_in_no_record_span_or_metric(
    client,
    tmp_path,
    monkeypatch,
    caplog,
    spans,
    password,
):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "lamella")
    with TokenServer({"ann": SECRET}) as tokens, RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        auth = base64.b64encode(f"ann:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.address: {"auth": auth}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        try:
            client.images.pull(f"{server.address}/team/app", unpack=False)
            assert password == SECRET
        except LamellaError:
            assert password != SECRET
    caplog.handler.records[:] = [r for r in caplog.records if r.name.split(".")[0] == "lamella"]
    said = everything(client, caplog, spans())
    assert "/v2/team/app/manifests/latest" in said
    assert "/token" not in said
    for secret in (SECRET, password, auth, *tokens.given):
        assert secret not in said


def test_signed_addresses_are_in_no_record(caplog):
    caplog.set_level(logging.DEBUG, "lamella")
    body = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    index = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
    with (
        ScriptedServer(lambda _: Reply(200, index, body)) as storage,
        ScriptedServer(
            lambda _: Reply(307, {"Location": f"http://{storage.address}/sig-in-path/x?sig=in-query"}, b"")
        ) as server,
        RegistryClient(
            RegistryConfig(credentials={server.address: Credential(username="a", password=SECRET)})
        ) as client,
    ):
        client.resolve(Reference.parse(f"{server.address}/team/app"))
    said = "\n".join(json.dumps(vars(record), default=str) + record.getMessage() for record in caplog.records)
    assert storage.address in said
    assert "sig-in-path" not in said
    assert "in-query" not in said
