"""The Python of README.md and docs/ runs as it stands, page by page, with nginx:latest served from this machine."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path

import pytest

import lamella
from networking import Machine

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.integration,
    pytest.mark.real_image,
    pytest.mark.needs_program("skopeo"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/guide.md", "docs/scenario.md", "docs/coming-from-docker.md", "docs/runtimes.md"]
NETWORKS = "docs/networks.md"


def snippets(page: str) -> str:
    """Give the page's Python with its line numbers kept, so that a failure points into the page."""
    lines, inside = [], False
    for line in (REPOSITORY / page).read_text().splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def nginx(docker_registry, real_image_ref):
    """Serve the real image, which has nginx in it, as docker.io/library/nginx; give the address."""
    source, target = f"docker://{real_image_ref}", f"docker://{docker_registry}/library/nginx:latest"
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", source, target],
        check=True,
    )
    return docker_registry


@pytest.fixture
def logging_as_before():
    """Take back what a snippet sets up for its whole process."""
    loggers = [logging.getLogger(), logging.getLogger("lamella")]
    before = [(logger.level, [*logger.handlers]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def store(nginx, tmp_path, monkeypatch):
    """Let what is not said otherwise be a store of the test's own, and registries be ours."""
    hosts = tmp_path / "hosts/_default/hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'server = "http://{nginx}"\n')
    monkeypatch.setenv("LAMELLA_HOSTS_DIR", str(tmp_path / "hosts"))
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("LAMELLA_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # for files that a page writes


def run(page):
    code = snippets(page)
    assert code.strip()
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("logging_as_before", "store")
@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run_in_order(page):
    run(page)


@pytest.mark.usefixtures("store")
@pytest.mark.needs_program("iptables", "ip")
def test_the_snippets_about_networks_run_on_a_machine_of_their_own():
    with lamella.Client() as client:
        client.images.pull("nginx:latest")
    machine = Machine()
    machine.enter()
    try:
        run(NETWORKS)
    finally:
        machine.leave()


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/*.md"))
)
def test_every_page_with_python_is_run(page):
    assert page in [*PAGES, NETWORKS] or not re.search(r"^```python$", (REPOSITORY / page).read_text(), re.M)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text()):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
