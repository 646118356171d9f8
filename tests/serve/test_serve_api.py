"""The generated modules are those of the .proto files."""

from pathlib import Path

import serve_api


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    fresh = {path.name: path.read_bytes() for path in serve_api.generate(tmp_path).iterdir()}
    committed = {path.name: path.read_bytes() for path in (serve_api.SERVE / "api").glob("*_pb2.py*")}
    assert fresh == committed, "run make serve-api"
