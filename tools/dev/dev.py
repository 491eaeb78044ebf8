"""`just dev`: run the whole system on this machine until Ctrl-C."""

import os
import signal
import threading
import time

from tools.dev.environment import service_environments
from tools.dev.presence import only_one, write
from tools.dev.readiness import wait_until_ready
from tools.dev.runner import Services
from tools.migrate import migrate
from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers import Addresses, servers
from tools.servers.ports import is_free

_FIRST_PORT = 8000
_READY_SECONDS = 30


def dev() -> int:
    """Run the services until a signal; return 0 once they have ended."""
    began = time.monotonic()
    with only_one() as state, servers("dev", prepare=migrate) as addresses:
        secrets = Secrets.load_or_create(SECRETS)
        port = _free_port()
        environments = service_environments(addresses, secrets, port=port)
        url = f"http://localhost:{port}"
        write(state, url)
        services = Services(environments)
        report = threading.Thread(
            target=_report_ready,
            args=(began, services, url, addresses, secrets),
            daemon=True,
            name="report",
        )
        report.start()
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        try:
            services.loop()
        finally:
            services.kill()  # services are left only after an unexpected end of the loop
        return 0


def _free_port() -> int:
    port = _FIRST_PORT
    while not is_free(port):
        port += 1
    if port != _FIRST_PORT:
        print(f"dev: port {_FIRST_PORT} is taken, so the gateway listens on {port}", flush=True)
    return port


def _report_ready(
    began: float, services: Services, url: str, addresses: Addresses, secrets: Secrets
) -> None:
    """Wait for the gateway, seed the data, and print the URLs and log-ins."""
    import httpx  # slow to import; the services are already starting

    from tools.dev.seed import seed

    while missing := wait_until_ready(url, _READY_SECONDS):
        services.say(f"still not ready: {missing}")
    try:
        seed(url, secrets)
    except httpx.HTTPError as error:
        services.say(f"could not seed: {error}")
    management = httpx.URL(addresses.amqp_management_url)
    services.say(
        f"ready after {time.monotonic() - began:.1f} s. Ctrl-C ends it.\n"
        f"  API         {url}/v1\n"
        f"  documents   {url}/docs, {url}/docs/events, {url}/contracts\n"
        f"  WebSocket   {url.replace('http', 'ws', 1)}/ws\n"
        f"  metrics     {url}/metrics\n"
        f"  RabbitMQ    {management.copy_with(username=None, password=None)}"
        f"  ({management.username} / {management.password})\n"
        f"  log in as   alice / {secrets.alice_password}\n"
        f"              bob   / {secrets.bob_password}"
    )
