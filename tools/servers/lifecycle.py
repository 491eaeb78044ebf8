"""Which servers to use, and when they start and stop."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tools.paths import DEV
from tools.secrets import Secrets
from tools.servers import docker, leases
from tools.servers.addresses import Addresses, Prepare, without_password
from tools.servers.docker import Docker
from tools.servers.native import Native
from tools.servers.report import Row, table
from tools.servers.signals import deferred_signals

_SECRETS = DEV / "secrets.env"


@contextmanager
def servers(
    command: str = "python", *, prepare: Prepare = lambda addresses: None
) -> Iterator[Addresses]:
    """Starts what is missing, and stops it at the end if nobody else uses it.

    `prepare` is called once both databases are ready; RabbitMQ, the slowest, may still be starting.

    Addresses set in the environment come first; then a Docker engine, where one answers; then
    processes of this clone. `command` is what `just down` calls the holder of this lease.
    Raises InfrastructureError where a server can't be had.
    """
    if given := Addresses.from_environment(os.environ):
        print("servers: those whose addresses are in the environment", flush=True)
        prepare(given)
        yield given
        return
    lease = leases.take(command)
    try:
        with leases.exclusively():
            addresses = _start(prepare)
        yield addresses
    finally:
        with deferred_signals(), leases.exclusively():
            lease.unlink(missing_ok=True)
            _stop_if_unused()


def up() -> None:
    """Starts the servers to stay until `down`."""
    if Addresses.from_environment(os.environ):
        print("servers: their addresses are in the environment, so there is nothing to start")
        return
    with leases.exclusively():
        leases.take_lasting()
        try:
            _start()
        except BaseException:
            with deferred_signals():
                leases.give_back_lasting()
                _stop_if_unused()
            raise
        print(table(_backend().status()))


def down() -> None:
    """Stops the servers, unless a running command needs them."""
    with leases.exclusively():
        leases.give_back_lasting()
        if holders := leases.holders():
            raise SystemExit(
                f"The servers are in use by {', '.join(holders)} and stop when that ends."
                " End it (Ctrl-C in its terminal) to stop them now."
            )
        with deferred_signals():
            _backend().stop()
    print("servers: stopped")


def status() -> None:
    """Prints a table of the servers and who uses them."""
    if given := Addresses.from_environment(os.environ):
        urls = (given.amqp_url, given.postgres_url, given.mongo_url)
        names = ("rabbitmq", "postgres", "mongodb")
        rows = zip(names, map(without_password, urls), strict=True)
        print(table([Row(name, "environment", url, "not ours", None) for name, url in rows]))
        return
    print(table(_backend().status()))
    print(f"in use by: {', '.join(leases.holders()) or 'nobody'}")


def server_log_command(names: list[str], *, follow: bool) -> list[str]:
    """The command that prints the logs of the named servers, or of all."""
    return _backend().log_command(names, follow=follow)


def _start(prepare: Prepare = lambda addresses: None) -> Addresses:
    backend = _backend()
    if not backend.running():
        print(f"servers: starting RabbitMQ, PostgreSQL and MongoDB as {backend.title}", flush=True)
    return backend.start(prepare)


def _stop_if_unused() -> None:
    if not leases.holders():
        _backend().stop()


def _backend() -> Docker | Native:
    """What the servers run as now or, if none runs, what they will run as."""
    secrets = Secrets.load_or_create(_SECRETS)
    native = Native(secrets)
    if native.running() or not docker.engine_answers():
        return native
    return Docker(secrets, _SECRETS)
