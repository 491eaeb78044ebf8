"""No process is left behind, whichever process of a command gets which signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.paths import ROOT
from tools.servers.processes import identity, wait_until

SECONDS = 20.0  # processes start slowly on a machine with other work

COMMAND = """
import os, signal, sys
from tools.servers.signals import end_on_signals
from tools.test import run_group

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell can have it ignored
end_on_signals()
pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # it starts faster without
run_group([*pytest, "--rootdir", *sys.argv[1:]], environment)
"""
"""`just test` without the servers."""

TESTS = """
import os, subprocess, time
from pathlib import Path
import pytest
from tools.servers.guardian import end_with_this_process
from tools.servers.signals import interrupt_on_sigterm

interrupt_on_sigterm()
FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def child():
    process = subprocess.Popen(["sleep", "1000"])
    end_with_this_process(process.pid)
    (FOLDER / "pids").write_text(f"{os.getppid()} {os.getpid()} {process.pid}")
    yield
    (FOLDER / "cleaned_up").touch()
    process.kill()
    process.wait()


def test_that_waits(child):
    time.sleep(1000)
"""

OWNER = """
import subprocess, sys, time
from tools.servers.guardian import end_with_this_process

child = subprocess.Popen(sys.argv[1:], start_new_session=sys.argv[1] == "sh")
end_with_this_process(child.pid)
print(child.pid, flush=True)
time.sleep(1000)
"""


@contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def all_end(*pids: int) -> bool:
    return wait_until(lambda: not any(map(identity, pids)), seconds=SECONDS)


@pytest.mark.parametrize(
    ("target", "number", "cleans_up"),
    [
        ("command", signal.SIGINT, True),
        ("command", signal.SIGTERM, True),
        ("command", signal.SIGKILL, True),
        ("pytest", signal.SIGTERM, True),
        ("pytest", signal.SIGKILL, False),
    ],
)
def test_processes_of_the_tests_end_with_their_command(
    tmp_path: Path, target: str, number: signal.Signals, cleans_up: bool
) -> None:
    tests, pids = tmp_path / "test_waiting.py", tmp_path / "pids"
    tests.write_text(TESTS)
    with running("-c", COMMAND, str(tmp_path), str(tests)) as command:
        assert wait_until(lambda: pids.exists() and bool(pids.read_text()), seconds=SECONDS)
        _, pytest_pid, child = map(int, pids.read_text().split())

        os.kill(command.pid if target == "command" else pytest_pid, number)
        ended = all_end(pytest_pid, child)
        command.wait(timeout=SECONDS)

    assert (ended, (tmp_path / "cleaned_up").exists()) == (True, cleans_up)


@pytest.mark.parametrize(
    "child", [["sleep", "1000"], ["sh", "-c", "(trap '' TERM; sleep 1000) & wait"]]
)
def test_child_of_a_killed_process_ends_with_its_group(child: list[str]) -> None:
    with running("-c", OWNER, *child) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()

        assert all_end(pid)
        assert wait_until(lambda: not group_runs(pid), seconds=SECONDS)


def group_runs(leader: int) -> bool:
    """Return whether a process of a group runs; a zombie does not."""
    listed = subprocess.run(
        ["/bin/ps", "-A", "-o", "pgid=,pid="], capture_output=True, text=True, check=True
    )
    members = [line.split() for line in listed.stdout.splitlines()]
    return any(identity(int(pid)) for group, pid in members if int(group) == leader)
