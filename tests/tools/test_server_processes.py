"""Server processes of a clone."""

import resource
from pathlib import Path

from tools.servers.processes import Daemon, wait_until


def test_server_of_a_user_with_few_files_may_open_many(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    server = Daemon(name="limits", folder=tmp_path)
    try:
        server.spawn(["/bin/sh", "-c", "ulimit -n"], {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert wait_until(lambda: server.log.read_text().endswith("\n"), seconds=5)
    assert int(server.log.read_text()) == min(64_000, before[1])
