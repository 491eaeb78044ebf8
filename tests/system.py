"""The system as processes, each in its own environment; tests can stop and kill them."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from postbus.registry import METHODS
from tests.tokens import TokenMaker
from tools.accounts.mongodb import set_up_mongodb
from tools.accounts.passwords import owner_of, password_name
from tools.accounts.postgres import set_up_postgres
from tools.dev.environment import service_of
from tools.paths import SECRETS, SERVICES
from tools.secrets import Secrets
from tools.servers.addresses import in_database, owner_url, service_url
from tools.servers.guardian import end_with_this_process
from tools.services import databases

__all__ = ["WITHOUT_RATES", "Cost", "System", "free_port", "run_system"]

ROOT = Path(__file__).parents[1]
WITHOUT_RATES: Final = {
    "POSTBUS_RATE_ADDRESS": "",
    "POSTBUS_RATE_USER": "",
    "POSTBUS_RATE_USER_CHANGES": "",
    "POSTBUS_RATE_METHODS": json.dumps(
        {name: "" for name, method in METHODS.items() if method.rate_limit}
    ),
}
"""All tests have one address, so its rates are off; tests/gateway/test_rates.py tests them."""


def free_port() -> int:
    """Return a free TCP port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


START_SECONDS: Final = 50
"""Python starts slowly on a machine with other work."""
READINESS_SECONDS: Final = 0.25
"""Longer than the 0.2 seconds for which the gateway caches /readyz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Processor time in seconds, memory in MiB, and the longest step of the loop in seconds."""

    cpu: float
    resident: float
    longest_step: float


class System:
    """Gateway and workers; `url` is the gateway's. `probed` services run under tests/probe.py.

    Each service has its own account at the servers, as in `just dev`. A process has the name of its
    service, or with a number, such as `posts-2`, if there are several.
    """

    def __init__(
        self, environment: Mapping[str, str], logs: Path, probed: Collection[str] = ()
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.websocket_url = f"ws://127.0.0.1:{self.port}/ws"
        self._environment = {**environment, "POSTBUS_PORT": str(self.port)}
        self._logs = logs
        self._probed = probed
        self._secrets = Secrets.load_or_create(SECRETS)
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._ports: dict[str, int] = {}

    async def run(
        self, name: str, *arguments: str, stdout: int | None = None, **settings: str
    ) -> asyncio.subprocess.Process:
        """Run `python -m service arguments` in the service's environment with `settings`."""
        service = service_of(name)
        program = ["-m", service, *arguments]
        probe = {}
        if service in self._probed and not arguments:
            program = [str(ROOT / "tests" / "probe.py"), service]
            probe = {"PROBE_FILE": str(self._new_probe_file(name))}
        owner = arguments[:1] == ("migrate",)
        environment = self._environment | self.accounts(service, owner=owner) | probe | settings
        with (self._logs / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                ROOT / service / ".venv/bin/python",
                *program,
                env={"PATH": os.environ["PATH"], **environment},
                stdout=log if stdout is None else stdout,
                stderr=log,
            )
        end_with_this_process(process.pid)
        return process

    async def output(self, service: str, *arguments: str) -> str:
        """Run a command of a service; return its output."""
        process = await self.run(service, *arguments, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0, output
        return output.decode()

    def databases(self, service: str) -> dict[str, str]:
        """Return the databases of a service, with an administrator's account.

        They are the given ones with the service's name appended.
        """
        names = [f"POSTBUS_{server.upper()}_URL" for server in databases(service)]
        urls = {name: httpx.URL(self._environment[name]) for name in names}
        return {
            name: str(url.copy_with(path=f"{url.path}_{service}")) for name, url in urls.items()
        }

    def accounts(self, service: str, *, owner: bool = False) -> dict[str, str]:
        """Return the addresses of a service with its accounts; `owner`: with the schema's owner."""
        url = self._environment["POSTBUS_AMQP_URL"]
        urls = {"POSTBUS_AMQP_URL": service_url(url, "rabbitmq", service, self._secrets)}
        for server in databases(service):
            name = f"POSTBUS_{server.upper()}_URL"
            url = in_database(self._environment[name], self._database(server, service))
            urls[name] = (
                owner_url(url, service, self._secrets)
                if owner and server == "postgres"
                else service_url(url, server, service, self._secrets)
            )
        return urls

    def _database(self, server: str, service: str) -> str:
        path = httpx.URL(self._environment[f"POSTBUS_{server.upper()}_URL"]).path
        return f"{path[1:]}_{service}"

    async def set_up_accounts(self) -> None:
        """Make the databases of the services with their accounts."""
        passwords = self._secrets.accounts
        for service in SERVICES:
            for server in databases(service):
                url = httpx.URL(self._environment[f"POSTBUS_{server.upper()}_URL"])
                password = passwords[password_name(server, service)]
                database = self._database(server, service)
                if server == "postgres":
                    await set_up_postgres(
                        str(url.copy_with(path="/postgres")),
                        service=service,
                        database=database,
                        password=password,
                        owner_password=passwords[password_name(server, owner_of(service))],
                    )
                else:
                    await asyncio.to_thread(
                        set_up_mongodb,
                        str(url),
                        service=service,
                        database=database,
                        password=password,
                    )

    async def migrate(self) -> None:
        """Make every database, and migrate it."""
        await self.set_up_accounts()
        migrations = (self.run(each, "migrate") for each in SERVICES if databases(each))
        for process in await asyncio.gather(*migrations):
            assert await process.wait() == 0, "a migration failed"

    async def start(self, *names: str, **settings: str) -> None:
        """Start processes, with further `settings`; `until_ready` waits for them.

        A gateway that has run before gets its port again.
        """
        for name in names:
            if name not in self._ports:
                self._ports[name] = free_port() if name.startswith("gateway-") else self.port
            port = {"POSTBUS_PORT": str(self._ports[name])}
            self._processes[name] = await self.run(name, stdout=None, **port, **settings)

    def url_of(self, gateway: str) -> str:
        """Return the URL of a gateway, such as `gateway-2`."""
        return f"http://127.0.0.1:{self._ports[gateway]}"

    @asynccontextmanager
    async def another_gateway(self, **settings: str) -> AsyncIterator[str]:
        """Run one more gateway, with `settings`; give its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        process = await self.run("gateway", stdout=None, POSTBUS_PORT=str(port), **settings)
        try:
            await self.until_ready(url=url)
            yield url
        finally:
            process.terminate()
            await process.wait()

    async def stop(self, name: str, seconds: float = 5) -> int:
        """End a process with SIGTERM; return its exit code. TimeoutError after `seconds`."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):  # Ctrl-C ends the processes too
            process.terminate()
        async with asyncio.timeout(seconds):
            return await process.wait()

    async def kill(self, name: str) -> None:
        """End a process with SIGKILL."""
        process = self._processes.pop(name)
        process.kill()
        await process.wait()

    async def stop_all(self) -> None:
        """Stop all running services."""
        await asyncio.gather(*(self.stop(name) for name in list(self._processes)))

    def _new_probe_file(self, service: str) -> Path:
        file = self._logs / f"{service}.step"
        file.write_bytes(bytes(8))
        return file

    def ended(self) -> list[str]:
        """Return the processes that have ended by themselves, with their exit codes."""
        return [
            f"{name}: exit code {process.returncode}"
            for name, process in self._processes.items()
            if process.returncode is not None
        ]

    def log_sizes(self) -> dict[str, float]:
        """Return the size of the log of each process in MiB."""
        return {file.stem: file.stat().st_size / 2**20 for file in self._logs.glob("*.log")}

    def log(self, service: str) -> str:
        """Return the log of a service."""
        return (self._logs / f"{service}.log").read_text()

    def undeclared_reasons(self) -> list[str]:
        """Return the log lines about errors whose reasons the contract does not have."""
        logs = "".join(file.read_text() for file in self._logs.glob("*.log"))
        return [line for line in logs.splitlines() if "error.undeclared_reason" in line]

    def cost(self, service: str) -> Cost:
        """Return the cost of a probed service, and reset its longest step."""
        pid, file = self._processes[service].pid, self._logs / f"{service}.step"
        cpu = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        [step] = struct.unpack("d", file.read_bytes())
        with file.open("r+b") as opened:
            opened.write(bytes(8))
        return Cost(cpu=cpu, resident=self.resident()[service], longest_step=step)

    def pid(self, name: str) -> int:
        """Return the process id of a running process."""
        return self._processes[name].pid

    def pids(self) -> list[int]:
        """Return the process id of each running service."""
        return [process.pid for process in self._processes.values()]

    def resident(self) -> dict[str, float]:
        """Return the resident memory of each running service in MiB."""
        fields = {
            name: Path(f"/proc/{process.pid}/status").read_text().partition("VmRSS:")[2]
            for name, process in self._processes.items()
            if process.returncode is None
        }
        return {name: int(field.split()[0]) / 1024 for name, field in fields.items()}

    async def readiness(self, url: str = "") -> tuple[int, dict[str, Any]]:
        """Return status and body of /readyz; status 0 if the gateway does not respond."""
        await asyncio.sleep(READINESS_SECONDS)
        return await self._readiness(url)

    async def _readiness(self, url: str) -> tuple[int, dict[str, Any]]:
        async with httpx.AsyncClient(base_url=url or self.url, timeout=5) as client:
            try:
                response = await client.get("/readyz")
            except httpx.TransportError:
                return 0, {}
            return response.status_code, response.json()

    async def until_ready(self, seconds: float = 20, url: str = "") -> None:
        """Wait until every dependency is ready, by responses computed after this call."""
        status: int = 0
        body: dict[str, Any] = {}
        await asyncio.sleep(READINESS_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                while status != 200:
                    status, body = await self._readiness(url)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not ready after {seconds} s: {status} {body}") from None


@asynccontextmanager
async def run_system(
    environment: Mapping[str, str],
    tokens: TokenMaker,
    logs: Path,
    *,
    probed: Collection[str] = (),
) -> AsyncIterator[System]:
    """Migrate and start everything; `environment` gives the addresses of the servers."""
    settings = {
        "POSTBUS_SIGNING_KEY": tokens.signing_key,
        "POSTBUS_VERIFICATION_KEYS": tokens.key_set,
        "POSTBUS_PAGE_TOKEN_KEY": "of the tests alone",
        **WITHOUT_RATES,
        "POSTBUS_LOGIN_FAILURES_PER_ADDRESS": "0",  # all tests have one address
    }
    system = System({**settings, **environment}, logs, probed)
    try:
        await system.migrate()
        await system.start(*SERVICES)
        await system.until_ready(START_SECONDS)
        yield system
    finally:
        await system.stop_all()
    undeclared = system.undeclared_reasons()
    assert not undeclared, undeclared[:3]
