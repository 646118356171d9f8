"""Two halves of the tests at once: each test is in one of them, and either can fail the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_tests

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {
    "tests/privileged/test_pool.py": "privileged",
    "tests/cli/test_cli_words.py": "both",
    "tests/contract/test_unified.py": "others",
    "tests/unit/test_user.py": "others",
}


def collected(half: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *FILES],
        env=os.environ | {"LAMELLA_TEST_HALF": half},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_a_test_is_in_one_half_and_what_changes_the_machine_in_the_first() -> None:
    halves = {half: collected(half) for half in ("privileged", "others")}
    assert halves["privileged"] | halves["others"] == collected("")
    assert not halves["privileged"] & halves["others"]
    for file, where in FILES.items():
        found = {half for half, tests in halves.items() if any(test.startswith(file) for test in tests)}
        assert found == ({"privileged", "others"} if where == "both" else {where}), file


@pytest.mark.needs_root
@pytest.mark.beside
@pytest.mark.parametrize("failing", ["", "privileged", "others"])
def test_the_run_tells_of_both_and_fails_with_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failing: str
) -> None:
    # What comes and goes on the machine meanwhile is of the run that this one is part of.
    (tmp_path / "conftest.py").write_text(
        (REPOSITORY / "tests/conftest.py").read_text() + "\nLeftovers.look = lambda self: {}\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        f"@pytest.mark.privileged\ndef test_one(): assert {failing!r} != 'privileged'\n"
        f"def test_two(): assert {failing!r} != 'others'\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\nmarkers =\n privileged\n beside\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_tests, "_can_be_halved", lambda: True)  # with one processor, too
    status = run_tests.main([])
    told = capfd.readouterr().out
    assert (status != 0) == bool(failing), told
    assert told.count("1 passed, 1 deselected") == (1 if failing else 2), told
    assert told.count("1 failed, 1 deselected") == bool(failing)
