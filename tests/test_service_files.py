"""What is given to users beside the service: its files for servers, its client, its page of documentation."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from service_client import RecordingPredictor, ServiceClient, png

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FLAGS = set(re.findall(r"^(--[a-z-]+)", (ROOT / "tests/help/serve.txt").read_text(), re.MULTILINE))
INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"
}  # fmt: skip


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_the_dockerfile_has_valid_instructions_and_a_command_that_exists():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    words = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert {name for name, _ in words} <= INSTRUCTIONS
    assert words[0][0] == "FROM"
    parts = dict(words)
    command = json.loads(parts["ENTRYPOINT"]) + json.loads(parts["CMD"])
    assert command[:2] == ["maskrcnn", "serve"]
    assert flags_in(" ".join(command)) <= FLAGS
    check = json.loads(parts["HEALTHCHECK"].split("CMD ", 1)[1])
    compile(check[2], "HEALTHCHECK", "exec")
    assert parts["USER"] != "root"


def test_the_unit_of_systemd_parses_and_waits_longer_than_the_grace():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # ty: ignore[invalid-assignment]
    unit.read(DEPLOY / "maskrcnn.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command[1] == "serve"
    assert flags_in(" ".join(command)) <= FLAGS
    assert int(unit["Service"]["TimeoutStopSec"]) > 20


def test_the_configuration_of_nginx_is_balanced_and_lets_the_largest_body_pass():
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    assert text.count("{") == text.count("}") == 1
    for line in filter(None, map(str.strip, text.splitlines())):
        assert line[-1] in "{};"
    assert "client_max_body_size 64m;" in text


def test_the_page_names_every_flag_of_its_tables():
    page = (ROOT / "docs" / "serve.md").read_text()
    page = re.sub(r"`python -m benchmarks[^`]*`", "", page)  # has flags of its own
    assert flags_in(page) <= FLAGS
    limits = {"--max-bytes", "--max-pixels", "--max-files", "--max-queue", "--timeout", "--grace"}
    assert limits <= flags_in(page)


def test_the_client_of_the_examples_prints_the_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = importlib.util.spec_from_file_location("serve_client", ROOT / "examples/serve_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = tmp_path / "a.png"
    image.write_bytes(png())
    service = ServiceClient(RecordingPredictor())

    class Answer:
        """A response of the service in this process, in the form of urllib."""

        def __init__(self, request: Any, timeout: float) -> None:
            path = request.full_url.removeprefix("http://127.0.0.1:8000")
            headers = dict(request.header_items())
            self.response = service.post(path, content=request.data, headers=headers)

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self) -> bytes:
            return self.response.content

    monkeypatch.setattr(module, "urlopen", Answer)
    try:
        content = module.predict(image)
    finally:
        service.close()
    assert content["images"][0]["width"] == 64
