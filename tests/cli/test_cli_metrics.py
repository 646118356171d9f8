"""``lamella metrics``."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from lamella.metrics import recorder, table


def test_the_text_and_the_document_have_the_same_metrics(lamella):
    recorder(lamella.state).add(table.PULLS.cell("present"), 5)
    families = {f.name: f for f in text_string_to_metric_families(lamella("metrics").ok().out)}
    document = lamella("--json", "metrics").ok().document
    assert [metric["name"].removesuffix("_total") for metric in document] == list(families)
    pulls = next(metric for metric in document if metric["name"] == "lamella_pulls_total")
    assert pulls["type"] == "counter"
    assert {"labels": {"result": "present"}, "value": 5} in pulls["samples"]
    assert [s.value for s in families["lamella_pulls"].samples if s.labels == {"result": "present"}] == [5.0]
    waits = next(metric for metric in document if metric["name"] == "lamella_lock_wait_seconds")
    assert set(waits["samples"][0]) == {"labels", "count", "sum", "buckets"}


def test_a_file_is_replaced_as_a_whole_and_others_may_read_it(lamella, tmp_path):
    target = tmp_path / "textfile" / "lamella.prom"
    target.parent.mkdir()
    target.write_text("old")
    old = target.open()
    assert lamella("metrics", "--output", str(target)).ok().out == ""
    assert old.read() == "old"
    old.close()
    assert "lamella_pulls_total" in target.read_text()
    assert target.stat().st_mode & 0o7777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["lamella.prom"]


def test_a_file_that_cannot_be_written_is_an_error(lamella, tmp_path):
    result = lamella("metrics", "--output", str(tmp_path / "no" / "such" / "file"))
    assert result.status == 1
    assert "No such file or directory" in result.err


def test_it_says_when_nothing_can_be_counted(lamella):
    lamella.state.mkdir()
    (lamella.state / f"metrics-{table.layout()}").mkdir()
    result = lamella("metrics").ok()
    assert "nothing is counted" in result.err
    assert "lamella_images" in result.out
