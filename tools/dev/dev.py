"""`just dev`: run the whole system on this machine until Ctrl-C."""

import argparse
import os
import signal
import threading
import time

from tools.accounts.passwords import password_name
from tools.accounts.rights import OPERATOR
from tools.dev.arguments import FIRST_PORT, GATEWAY
from tools.dev.environment import process_environments
from tools.dev.presence import only_one, write
from tools.dev.readiness import wait_until_ready
from tools.dev.runner import Services
from tools.migrate import migrate
from tools.paths import SECRETS, SERVICES
from tools.secrets import Secrets
from tools.servers import Addresses, servers
from tools.servers.ports import is_free

_READY_SECONDS = 30


def dev(options: argparse.Namespace) -> int:
    """Run the services until a signal; return 0 once they have ended."""
    counts = {service: getattr(options, service) for service in SERVICES}
    began = time.monotonic()
    with only_one() as state, servers("dev", prepare=migrate) as addresses:
        secrets = Secrets.load_or_create(SECRETS)
        port = _free_ports(counts[GATEWAY], options.port)
        environments = process_environments(addresses, secrets, counts=counts, port=port)
        url = f"http://localhost:{port}"
        write(state, url)
        services = Services(environments)
        report = threading.Thread(
            target=_report_ready,
            args=(began, services, url, addresses, secrets, counts[GATEWAY]),
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


def _free_ports(number: int, wanted: int | None) -> int:
    """Return the first of consecutive free ports; SystemExit if the wanted ones are taken."""
    port = wanted or FIRST_PORT
    while taken := [each for each in range(port, port + number) if not is_free(each)]:
        if wanted:
            raise SystemExit(f"dev: port {taken[0]} is taken")
        port = taken[-1] + 1
    if port != (wanted or FIRST_PORT):
        print(f"dev: port {FIRST_PORT} is taken, so the gateway listens on {port}", flush=True)
    return port


def _report_ready(
    began: float,
    services: Services,
    url: str,
    addresses: Addresses,
    secrets: Secrets,
    gateways: int,
) -> None:
    """Wait for the gateways, seed the data, and print the URLs and log-ins."""
    import httpx  # slow to import; the services are already starting

    from tools.dev.seed import seed

    address, _, first = url.rpartition(":")
    urls = [f"{address}:{int(first) + number}" for number in range(gateways)]
    for each in urls:
        while missing := wait_until_ready(each, _READY_SECONDS):
            services.say(f"still not ready: {each}: {missing}")
    try:
        seed(url, secrets)
    except httpx.HTTPError as error:
        services.say(f"could not seed: {error}")
    operator = secrets.accounts[password_name("rabbitmq", OPERATOR)]
    management = httpx.URL(addresses.amqp_management_url)
    services.say(
        f"ready after {time.monotonic() - began:.1f} s. Ctrl-C ends it.\n"
        + "".join(f"  API         {each}/v1\n" for each in urls)
        + f"  documents   {url}/docs, {url}/docs/events, {url}/contracts\n"
        f"  WebSocket   {url.replace('http', 'ws', 1)}/ws\n"
        f"  metrics     {url}/metrics\n"
        f"  RabbitMQ    {management.copy_with(username=None, password=None)}"
        f"  ({OPERATOR} / {operator})\n"
        f"  log in as   alice / {secrets.alice_password}\n"
        f"              bob   / {secrets.bob_password}"
    )
