"""The `transpector` command: what it says at once, what it refuses, and whom it lets in."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

import transpector

PYTHON = (sys.executable, "-m", "transpector")
UNBUFFERED = {**os.environ, "PYTHONUNBUFFERED": "1"}


def call(*arguments, env=None):
    """Run the command to its end; gives (exit status, what it wrote)."""
    done = subprocess.run(
        [*PYTHON, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stdout + done.stderr


def test_help_is_instant_and_says_what_there_is():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        status, said = call("--help")
        times.append(time.perf_counter() - began)
    assert status == 0
    for option in ("--model", "--port", "--address", "--no-browser", "--version"):
        assert option in said
    assert "anything but 127.0.0.1 lets other machines in" in " ".join(said.split())
    assert min(times) < 0.5


def test_help_imports_neither_panel_nor_torch():
    status, said = call("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert status == 0
    imported = {
        line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")
    }
    assert "transpector.cli" in imported
    assert not {name.partition(".")[0] for name in imported} & {"panel", "bokeh", "torch", "numpy", "param"}


def test_the_version_is_the_packages():
    assert call("--version") == (0, f"transpector {transpector.__version__}\n")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_what_is_no_port_is_refused_with_the_remedy(port):
    status, said = call(f"--port={port}")
    assert status == 2
    assert f"'{port}' is no port: choose 0 (any) to 65535" in said


def test_an_unknown_option_is_refused():
    status, said = call("--modle", "builtin")
    assert status == 2
    assert "--modle" in said


@pytest.mark.parametrize("where", ["port", "address"])
def test_an_address_that_can_not_be_had_is_said_in_a_sentence(where):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        elsewhere = ("--address", "no.such.host.invalid") if where == "address" else ()
        status, said = call("--no-browser", "--port", port, *elsewhere)
    assert status == 2
    assert f"port {port}: " in said
    assert "Choose another" in said
    assert "Traceback" not in said


def test_it_serves_on_a_free_port_of_this_machine_until_it_is_stopped():
    """One line says where; the page has its title, the server a sign of life, and no administration."""
    line = [*PYTHON, "--no-browser", "--port", "0"]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=UNBUFFERED, text=True
    )
    try:
        said = process.stdout.readline()
        address = said.split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", address), said
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert "<title>Transpector</title>" in answer.read().decode()
        with urllib.request.urlopen(f"{address}/liveness", timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/admin", timeout=60)
        listening = {
            at.laddr.ip for at in psutil.Process(process.pid).net_connections() if at.status == "LISTEN"
        }
        assert listening == {"127.0.0.1"}
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said
