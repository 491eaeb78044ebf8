"""Choose the servers (addresses, Docker, processes), start and stop them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers import docker, leases
from tools.servers.addresses import Addresses, Prepare, without_password
from tools.servers.docker import Docker
from tools.servers.errors import ServersUnavailableError
from tools.servers.native import Native
from tools.servers.rabbitmq import running_nodes
from tools.servers.report import Row, table
from tools.servers.signals import deferred_signals


@contextmanager
def servers(
    command: str = "python", *, prepare: Prepare = lambda addresses: None
) -> Iterator[Addresses]:
    """Start the servers that do not run; stop them at the end if no other lease is active.

    `prepare` is called once both databases are ready and have the services' accounts, while
    RabbitMQ may still be starting.

    Addresses in the environment have priority, then a Docker engine, then processes of this
    clone. `command` names the holder of the lease in `just down`. Raises ServersUnavailableError if
    a server cannot be provided.
    """
    if given := Addresses.from_environment(os.environ):
        print("servers: using the addresses in the environment", flush=True)
        from tools.servers.accounts import prepare_broker, prepare_databases  # slow to import

        secrets = Secrets.load_or_create(SECRETS)
        prepare_databases(given, secrets, ours=False)
        prepare_broker(given, secrets, ours=False)
        prepare(given)
        yield given
        return
    lease = leases.acquire(command)
    try:
        with leases.exclusively():
            addresses = _start(prepare)
        yield addresses
    finally:
        with deferred_signals(), leases.exclusively():
            lease.unlink(missing_ok=True)
            _stop_if_unused()


def up(*, rabbitmq_nodes: int = 0) -> None:
    """Start the servers until `down`. RabbitMQ has one node, or as many as are given.

    Raises ServersUnavailableError if RabbitMQ runs with another number of nodes.
    """
    if Addresses.from_environment(os.environ):
        print("servers: their addresses are in the environment, so there is nothing to start")
        return
    with leases.exclusively():
        _require_nodes(rabbitmq_nodes)
        leases.acquire_until_down()
        try:
            _start(rabbitmq_nodes=rabbitmq_nodes)
        except BaseException:
            with deferred_signals():
                leases.release_until_down()
                _stop_if_unused()
            raise
        print(table(_backend().status()))


def down() -> None:
    """Stop the servers, unless a running command holds a lease."""
    with leases.exclusively():
        leases.release_until_down()
        if holders := leases.active_holders():
            raise SystemExit(
                f"The servers are in use by {', '.join(holders)} and stop when that ends."
                " End it (Ctrl-C in its terminal) to stop them now."
            )
        with deferred_signals():
            _backend().stop()
    print("servers: stopped")


def status() -> None:
    """Print a table of the servers and the holders of leases."""
    if given := Addresses.from_environment(os.environ):
        urls = (given.amqp_url, given.postgres_url, given.mongo_url)
        names = ("rabbitmq", "postgres", "mongodb")
        rows = zip(names, map(without_password, urls), strict=True)
        print(table([Row(name, "environment", url, "not ours", None) for name, url in rows]))
        return
    print(table(_backend().status()))
    print(f"in use by: {', '.join(leases.active_holders()) or 'no command'}")


def server_log_command(names: list[str], *, follow: bool) -> list[str]:
    """Return the command that prints the logs of the named servers, or of all."""
    return _backend().log_command(names, follow=follow)


def _require_nodes(wanted: int) -> None:
    """Raise if RabbitMQ runs with another number of nodes, or in a container."""
    running = running_nodes()
    if wanted and running not in (0, wanted):
        raise ServersUnavailableError(
            f"RabbitMQ runs with {running} node{'s' if running > 1 else ''}: run `just down` first."
        )
    backend = _backend()
    if wanted > 1 and isinstance(backend, Docker) and backend.running():
        raise ServersUnavailableError("RabbitMQ runs in Docker: run `just down` first.")


def _start(prepare: Prepare = lambda addresses: None, *, rabbitmq_nodes: int = 0) -> Addresses:
    backend = _backend(rabbitmq_nodes)
    if not backend.running():
        print(f"servers: starting RabbitMQ, PostgreSQL and MongoDB as {backend.title}", flush=True)
    secrets = Secrets.load_or_create(SECRETS)

    def with_accounts(addresses: Addresses) -> None:
        from tools.servers.accounts import prepare_databases  # slow; the servers are starting

        prepare_databases(addresses, secrets, ours=True)
        prepare(addresses)

    addresses = backend.start(with_accounts)
    from tools.servers.accounts import prepare_broker

    prepare_broker(addresses, secrets, ours=True)
    return addresses


def _stop_if_unused() -> None:
    if not leases.active_holders():
        _backend().stop()


def _backend(rabbitmq_nodes: int = 0) -> Docker | Native:
    """Return the kind of the running servers or, if none runs, the kind to start.

    A cluster of RabbitMQ consists of processes of this clone.
    """
    secrets = Secrets.load_or_create(SECRETS)
    native = Native(secrets, rabbitmq_nodes=rabbitmq_nodes)
    if native.running() or rabbitmq_nodes > 1 or not docker.engine_answers():
        return native
    return Docker(secrets, SECRETS)
