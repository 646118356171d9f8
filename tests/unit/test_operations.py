"""One ``with`` block: counted, traced where the program traces, logged where it listens, and cheap where it does neither."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

import pytest

from lamella import tracing
from lamella.errors import DataLoss, FailedPrecondition, NotFound
from lamella.logs import Log
from lamella.metrics import Recorder, table
from lamella.operations import INFO, Operation, by_result, when_ok

PULL = Operation(
    "pull",
    "pulled %(image)s: %(result)s",
    log="lamella.transfer",
    level=INFO,
    counts=by_result(table.PULLS),
    durations={"pulled": table.PULL_SECONDS.series("pulled")},
)
PREPARE = Operation(
    "prepare",
    "prepared",
    log="lamella.snapshots",
    durations=when_ok(table.PREPARE_SECONDS, "active"),
)


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path / "state")


def pulls(recorder, result):
    return recorder.values()[table.PULLS.cell(result)]


def durations(recorder, series):
    return sum(recorder.values()[series.first : series.total])


def errors(recorder):
    values = recorder.values()
    return {names: values[cell] for names, cell in table.ERRORS.cells.items() if values[cell]}


def test_an_operation_is_counted_by_its_result(recorder):
    for result in ("pulled", "present", "pulled"):
        with PULL(recorder, image="a") as running:
            running.result = result
    assert [pulls(recorder, result) for result in ("pulled", "present", "error")] == [2, 1, 0]
    assert durations(recorder, table.PULL_SECONDS.series("pulled")) == 2
    assert durations(recorder, table.PULL_SECONDS.series("present")) == 0
    assert errors(recorder) == {}


def test_an_error_passes_and_is_counted_by_its_class(recorder):
    class Damaged(DataLoss):
        pass

    for error in (NotFound("x"), Damaged("x"), Damaged("x"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)), PULL(recorder, image="a") as running:
            running.result = "present"
            raise error
    assert pulls(recorder, "error") == 5
    assert pulls(recorder, "present") == 0
    assert errors(recorder) == {
        ("pull", "NotFound"): 1,
        ("pull", "DataLoss"): 2,
        ("pull", "Cancelled"): 1,
        ("pull", "Internal"): 1,
    }


def test_a_part_of_an_operation_counts_no_errors(recorder):
    part = Operation("layer", "layer", log="lamella.transfer")
    with pytest.raises(NotFound), part(recorder):
        raise NotFound("x")
    assert errors(recorder) == {}


def test_a_record_has_its_facts_as_attributes_and_the_place_of_the_call(recorder, caplog):
    caplog.set_level(logging.DEBUG, "lamella")
    with PULL(recorder, image="nginx") as running:
        running.result = "pulled"
        running.note(digest="sha256:1")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "lamella.transfer",
        "INFO",
        "pulled nginx: pulled",
    )
    assert (record.image, record.digest, record.result) == ("nginx", "sha256:1", "pulled")
    assert record.seconds >= 0
    assert record.funcName == "test_a_record_has_its_facts_as_attributes_and_the_place_of_the_call"


def test_an_error_that_is_raised_anyway_is_logged_as_debug(recorder, caplog):
    caplog.set_level(logging.DEBUG, "lamella")
    with pytest.raises(FailedPrecondition), PULL(recorder, image="nginx"):
        raise FailedPrecondition("100% wrong")
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert record.getMessage() == "pull failed: FailedPrecondition: 100% wrong"
    assert (record.image, record.error) == ("nginx", "FailedPrecondition")
    assert record.funcName == "test_an_error_that_is_raised_anyway_is_logged_as_debug"


def test_nothing_is_logged_below_the_level_and_no_handler_is_added(recorder, caplog):
    logging.getLogger("lamella").setLevel(logging.WARNING)
    try:
        with PULL(recorder, image="nginx"):
            pass
    finally:
        logging.getLogger("lamella").setLevel(logging.NOTSET)
    assert caplog.records == []
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "lamella"]
    assert "lamella.transfer" in names
    for name in names:
        assert logging.getLogger(name).handlers == []
        assert logging.getLogger(name).level == logging.NOTSET


def test_a_message_without_fields_may_have_a_percent_sign(caplog):
    caplog.set_level(logging.DEBUG, "lamella")
    log = Log("lamella")
    log.debug("100%")
    log.info("%(bytes)d bytes", bytes=5)
    log.warning("ignored")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "100%"),
        ("INFO", "5 bytes"),
        ("WARNING", "ignored"),
    ]
    assert caplog.records[1].funcName == "test_a_message_without_fields_may_have_a_percent_sign"


def test_a_warning_is_seen_where_nobody_set_logging_up_and_goes_to_the_command_where_that_runs(monkeypatch):
    code = """
from lamella.logs import Log
Log("lamella").info("not %(reason)s", reason="this")
Log("lamella").warning("ignored: %(reason)s", reason="that")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "ignored: that\n"
    shown = []
    monkeypatch.setattr("lamella.logs.show_warning", shown.append)
    Log("lamella").warning("ignored: %(reason)s", reason="that")
    assert shown == ["ignored: that"]


def test_no_field_hides_what_a_record_has_by_itself():
    record = vars(logging.makeLogRecord({}))
    assert not set(tracing.ATTRIBUTES) & {*record, "message", "asctime"}
    assert len(set(tracing.ATTRIBUTES.values())) == len(tracing.ATTRIBUTES)


def test_spans_have_parents_attributes_and_results(recorder, spans):
    with PULL(recorder, image="nginx") as running:
        with PREPARE(recorder, snapshot="key", parent=None):
            pass
        running.note(digest="sha256:1", bytes=3)
    inner, outer = spans()
    assert (inner.name, outer.name) == ("lamella.prepare", "lamella.pull")
    assert inner.parent.span_id == outer.context.span_id
    assert dict(inner.attributes) == {"lamella.snapshot.key": "key"}
    assert dict(outer.attributes) == {
        "container.image.name": "nginx",
        "oci.manifest.digest": "sha256:1",
        "lamella.bytes": 3,
    }
    assert outer.status.is_unset
    assert outer.instrumentation_scope.name == "lamella"


def test_an_error_is_recorded_in_its_span(recorder, spans):
    with pytest.raises(NotFound), PULL(recorder, image="nginx"):
        raise NotFound("there is no nginx")
    (span,) = spans()
    assert not span.status.is_ok
    assert "there is no nginx" in span.status.description
    assert span.attributes["error.type"] == "NotFound"
    assert [event.name for event in span.events] == ["exception"]


def test_a_span_is_the_child_of_the_programs_own_and_passes_to_threads(recorder, spans):
    from opentelemetry import trace

    def work() -> None:
        with tracing.span("lamella.layer", layer="sha256:2"):
            pass

    with trace.get_tracer("embedder").start_as_current_span("request"), PULL(recorder, image="nginx"):
        threads = [threading.Thread(target=tracing.in_context(work)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    *layers, pull, request = spans()
    assert [layer.name for layer in layers] == ["lamella.layer"] * 3
    assert {layer.parent.span_id for layer in layers} == {pull.context.span_id}
    assert pull.parent.span_id == request.context.span_id


def test_a_program_that_neither_traces_nor_logs_loads_neither(tmp_path):
    code = """
import json, sys
from pathlib import Path
import lamella
with lamella.Client(root=sys.argv[1] + "/root", state=sys.argv[1] + "/state") as client:
    client.snapshots.prepare("key")
    client.gc()
found = [name for name in sys.modules if name.split(".")[0] in ("logging", "opentelemetry", "prometheus_client")]
import logging
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(snapshot)s")
with lamella.Client(root=sys.argv[1] + "/root", state=sys.argv[1] + "/state") as client:
    client.snapshots.prepare("later")
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    said, found = done.stdout.splitlines()
    assert json.loads(found) == []
    assert said == "lamella.snapshots later"
