"""Each account can do what its service needs, and nothing with what belongs to another service."""

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import permutations

import aio_pika
import asyncpg
import httpx
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from postbus.registry import METHODS
from shared.bus.handler_matching import WORKERS
from tests.conftest import new_vhost
from tools.accounts.broker import set_up_broker
from tools.accounts.errors import MissingRightsError
from tools.accounts.mongodb import set_up_mongodb
from tools.accounts.passwords import owner_of
from tools.accounts.postgres import set_up_postgres
from tools.accounts.rights import OPERATOR, Rights, broker_rights
from tools.paths import ROOT, SECRETS, SERVICES
from tools.secrets import Secrets
from tools.servers.accounts import prepare_broker
from tools.servers.addresses import Addresses, in_database, service_url, with_account
from tools.servers.errors import ServersUnavailableError
from tools.services import call_graph

Unique = Callable[[str], str]
Connections = dict[str, AbstractConnection]
Action = Callable[[AbstractChannel], Awaitable[object]]

CALLS = call_graph()
SECRET, OWNER_SECRET = "one", "two"
KINDS = ("calls", "replies", "control", "retry", "dead", "events")
PAIRS = list(permutations(SERVICES, 2))


@pytest.fixture(scope="module")
async def vhost_of_accounts(run_id: str) -> AsyncIterator[str]:
    async with new_vhost(f"{run_id}_accounts") as url:
        yield url


@pytest.fixture(scope="module")
async def connections(vhost_of_accounts: str) -> AsyncIterator[Connections]:
    """A connection as each service, which has declared its exchanges and some queues."""
    secrets = Secrets.load_or_create(SECRETS)
    opened: Connections = {}
    for service in SERVICES:
        url = service_url(vhost_of_accounts, "rabbitmq", service, secrets)
        opened[service] = await aio_pika.connect(url)
        async with channel_of(opened, service) as channel:
            await declare_topology(channel, service)
    yield opened
    for connection in opened.values():
        await connection.close()


async def declare_topology(channel: AbstractChannel, service: str) -> None:
    for kind in KINDS:
        type_ = aio_pika.ExchangeType.TOPIC if kind == "events" else aio_pika.ExchangeType.DIRECT
        await channel.declare_exchange(f"postbus.{kind}.{service}", type_, durable=True)
    method = await channel.declare_queue(f"{service}.method", durable=True)
    await method.bind(f"postbus.calls.{service}", "method")
    consumer = await channel.declare_queue(
        f"{service}.event",
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": f"postbus.dead.{service}",
            "x-dead-letter-routing-key": f"{service}.event",
        },
    )
    await consumer.bind(f"postbus.retry.{service}", consumer.name)
    delay = await channel.declare_exchange(
        f"{service}.delay.5", aio_pika.ExchangeType.FANOUT, durable=True
    )
    queue = await channel.declare_queue(
        f"{service}.delay.5",
        durable=True,
        arguments={"x-message-ttl": 5, "x-dead-letter-exchange": f"postbus.retry.{service}"},
    )
    await queue.bind(delay)


@asynccontextmanager
async def channel_of(connections: Connections, service: str) -> AsyncIterator[AbstractChannel]:
    channel = await connections[service].channel()
    try:
        yield channel
    finally:
        if not channel.is_closed:
            await channel.close()


async def refused(connections: Connections, service: str, action: Action) -> bool:
    async with channel_of(connections, service) as channel:
        try:
            await action(channel)
        except ChannelAccessRefused:
            return True
        return False


def publish(exchange: str, key: str, user_id: str | None = None) -> Action:
    async def action(channel: AbstractChannel) -> None:
        target = (
            await channel.get_exchange(exchange, ensure=False)
            if exchange
            else channel.default_exchange
        )
        await target.publish(aio_pika.Message(b"x", user_id=user_id), key, mandatory=False)

    return action


def bind(service: str, exchange: str) -> Action:
    async def action(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(f"{service}.spy", auto_delete=True)
        await queue.bind(exchange, "#")

    return action


def on_queue(name: str, use: Callable[[aio_pika.abc.AbstractQueue], Awaitable[object]]) -> Action:
    async def action(channel: AbstractChannel) -> None:
        await use(await channel.get_queue(name, ensure=False))

    return action


async def _ignore(_message: aio_pika.abc.AbstractIncomingMessage) -> None:
    pass


def attempts(attacker: str, victim: str) -> dict[str, Action]:
    """Return attempts that are refused whatever the services call."""
    return {
        **{
            f"publish to {kind}": publish(f"postbus.{kind}.{victim}", "x")
            for kind in ("events", "retry", "dead")
        },
        **{
            f"bind {kind}": bind(attacker, f"postbus.{kind}.{victim}")
            for kind in KINDS
            if kind != "events"
        },
        "publish to the default exchange": publish("", f"{victim}.method"),
        "consume": on_queue(f"{victim}.event", lambda queue: queue.consume(_ignore)),
        "get": on_queue(f"{victim}.event", lambda queue: queue.get(fail=False)),
        "purge": on_queue(f"{victim}.event", lambda queue: queue.purge()),
        "delete a queue": on_queue(f"{victim}.event", lambda queue: queue.delete()),
        "unbind": on_queue(
            f"{victim}.method", lambda queue: queue.unbind(f"postbus.calls.{victim}", "method")
        ),
        "delete an exchange": lambda channel: channel.exchange_delete(f"postbus.events.{victim}"),
        "declare an exchange": lambda channel: channel.declare_exchange(f"postbus.new.{victim}"),
        "declare a queue": lambda channel: channel.declare_queue(f"{victim}.new"),
        "let the broker name a queue": lambda channel: channel.declare_queue(exclusive=True),
        "dead-letter into events": lambda channel: channel.declare_queue(
            f"{attacker}.forger",
            auto_delete=True,
            arguments={"x-dead-letter-exchange": f"postbus.events.{victim}"},
        ),
        "dead-letter into the default exchange": lambda channel: channel.declare_queue(
            f"{attacker}.forger", auto_delete=True, arguments={"x-dead-letter-exchange": ""}
        ),
        "alternate exchange": lambda channel: channel.declare_exchange(
            f"{attacker}.forger",
            auto_delete=True,
            arguments={"alternate-exchange": f"postbus.events.{victim}"},
        ),
    }


@pytest.mark.parametrize("service", sorted(set(SERVICES) - {"gateway"}))
def test_pyproject_names_the_services_that_the_sources_call(service: str) -> None:
    imports = [
        found
        for file in (ROOT / service / "src").rglob("*.py")
        for found in re.findall(
            r"from postbus\.(\w+)\.v1 import (\([^)]*\)|[^\n]*)", file.read_text()
        )
    ]

    assert {package for package, names in imports if "Stub" in names} == set(CALLS[service])


@pytest.mark.parametrize(("attacker", "victim"), PAIRS)
async def test_account_is_refused_what_belongs_to_another_service(
    connections: Connections, attacker: str, victim: str
) -> None:
    tried = attempts(attacker, victim)

    allowed = [what for what, act in tried.items() if not await refused(connections, attacker, act)]

    assert allowed == []


@pytest.mark.parametrize(("caller", "callee"), PAIRS)
async def test_account_calls_the_services_of_its_pyproject_only(
    connections: Connections, caller: str, callee: str
) -> None:
    calls = callee in CALLS[caller]
    sent = {
        "call": publish(f"postbus.calls.{callee}", "nothing"),
        "cancel": publish(f"postbus.control.{callee}", "nothing"),
    }
    reply = publish(f"postbus.replies.{caller}", "nothing")

    for action in sent.values():
        assert await refused(connections, caller, action) is not calls
    assert await refused(connections, callee, reply) is not calls


def test_callers_that_the_contract_names_may_call_the_service() -> None:
    lacking = [
        (method.name, caller)
        for method in METHODS.values()
        for caller in method.callers - {OPERATOR}
        for worker in ([method.worker] if method.worker in SERVICES else WORKERS)
        if worker not in CALLS[caller]
    ]

    assert lacking == []


@pytest.mark.parametrize(("consumer", "owner"), PAIRS)
async def test_account_may_subscribe_to_the_events_of_every_service(
    connections: Connections, consumer: str, owner: str
) -> None:
    assert not await refused(connections, consumer, bind(consumer, f"postbus.events.{owner}"))


@pytest.mark.parametrize(("attacker", "victim"), PAIRS)
async def test_user_id_of_another_account_is_refused(
    connections: Connections, attacker: str, victim: str
) -> None:
    forged = publish(f"postbus.events.{attacker}", "x", user_id=victim)

    async with channel_of(connections, attacker) as channel:
        with pytest.raises(ChannelPreconditionFailed, match="user_id"):
            await forged(channel)


@pytest.mark.parametrize("service", SERVICES)
async def test_account_of_a_service_has_no_access_to_the_management_api(
    amqp_management_url: str, service: str
) -> None:
    password = Secrets.load_or_create(SECRETS).accounts[f"rabbitmq_{service}_password"]
    server = httpx.URL(amqp_management_url).copy_with(username=None, password=None)

    async with httpx.AsyncClient(base_url=server, auth=(service, password)) as client:
        responses = [
            await client.get("/api/overview"),
            await client.put(
                "/api/users/intruder", json={"password": "x", "tags": "administrator"}
            ),
        ]

    assert [response.status_code for response in responses] == [401, 401]


@pytest.fixture
async def postgres_roles(postgres_url: str, unique: Unique) -> AsyncIterator[tuple[str, str]]:
    """Two services' names; both have roles and a database, which has the service's name."""
    server = str(httpx.URL(postgres_url).copy_with(path="/postgres"))
    names = (unique("one_"), unique("two_"))
    for name in names:
        await set_up_postgres(
            server, service=name, database=name, password=SECRET, owner_password=OWNER_SECRET
        )
    yield names
    administrator = await asyncpg.connect(server)
    for name in names:
        await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await administrator.execute(f'DROP ROLE "{name}", "{owner_of(name)}"')
    await administrator.close()


@asynccontextmanager
async def connected(
    postgres_url: str, user: str, password: str, database: str
) -> AsyncIterator[asyncpg.Connection]:
    url = in_database(with_account(postgres_url, user, password), database)
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_worker_role_changes_rows_and_nothing_else(
    postgres_url: str, postgres_roles: tuple[str, str]
) -> None:
    service, other = postgres_roles
    async with connected(postgres_url, owner_of(service), OWNER_SECRET, service) as owner:
        await owner.execute("CREATE TABLE notes (id serial PRIMARY KEY, text text)")
    refused_statements = (
        "CREATE TABLE mine (id int)",
        "DROP TABLE notes",
        "ALTER TABLE notes ADD COLUMN more int",
        "TRUNCATE notes",
        "CREATE SCHEMA mine",
        "CREATE ROLE intruder",
        "CREATE DATABASE mine",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        f'SET ROLE "{owner_of(service)}"',
        "COPY notes TO PROGRAM 'true'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT rolpassword FROM pg_authid",
        "CREATE TEMPORARY TABLE mine (id int)",
    )

    async with connected(postgres_url, service, SECRET, service) as worker:
        await worker.execute("INSERT INTO notes (text) VALUES ('a')")
        await worker.execute("UPDATE notes SET text = 'b'")
        texts = await worker.fetchval("SELECT text FROM notes")
        await worker.execute("DELETE FROM notes")
        for statement in refused_statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await worker.execute(statement)

    assert texts == "b"
    for role, password in ((service, SECRET), (owner_of(service), OWNER_SECRET)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with connected(postgres_url, role, password, other):
                pass


async def test_tables_of_a_superuser_go_to_the_owner(postgres_url: str, unique: Unique) -> None:
    server, name = str(httpx.URL(postgres_url).copy_with(path="/postgres")), unique("old_")
    administrator = await asyncpg.connect(server)
    await administrator.execute(f'CREATE DATABASE "{name}"')
    old = await asyncpg.connect(server, database=name)
    await old.execute("CREATE TABLE notes (id serial PRIMARY KEY)")
    await old.close()

    for _ in range(2):
        await set_up_postgres(
            server, service=name, database=name, password=SECRET, owner_password=OWNER_SECRET
        )

    async with connected(postgres_url, owner_of(name), OWNER_SECRET, name) as owner:
        await owner.execute("ALTER TABLE notes ADD COLUMN text text")
    async with connected(postgres_url, name, SECRET, name) as worker:
        await worker.execute("INSERT INTO notes (text) VALUES ('a')")
    await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await administrator.execute(f'DROP ROLE "{name}", "{owner_of(name)}"')
    await administrator.close()


async def test_neither_role_of_a_service_is_privileged(
    postgres_url: str, postgres_roles: tuple[str, str]
) -> None:
    roles = [name for service in postgres_roles for name in (service, owner_of(service))]
    administrator = await asyncpg.connect(str(httpx.URL(postgres_url).copy_with(path="/postgres")))
    privileged = await administrator.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY($1) AND (rolsuper OR rolcreaterole"
        " OR rolcreatedb OR rolreplication OR rolbypassrls)",
        roles,
    )
    await administrator.close()

    assert privileged == []


async def test_mongodb_user_reads_and_writes_in_its_database_only(
    mongo_url: str, unique: Unique
) -> None:
    prefix = httpx.URL(mongo_url).path[1:]
    mine, other = (f"{prefix}_{unique('own')}" for _ in range(2))
    for database in (mine, other):
        await asyncio.to_thread(
            set_up_mongodb, mongo_url, service=database, database=database, password=SECRET
        )
    url = in_database(with_account(mongo_url, mine, SECRET), mine)

    async with AsyncMongoClient[dict[str, object]](url) as client:
        await client[mine]["notes"].insert_one({"text": "a"})
        await client[mine]["notes"].create_index("text")
        attempts = {
            "read": client[other]["notes"].find_one(),
            "write": client[other]["notes"].insert_one({"text": "a"}),
            "drop": client.drop_database(other),
            "read users": client["admin"]["system.users"].find_one(),
            "read the oplog": client["local"]["oplog.rs"].find_one(),
            "create a user": client[mine].command("createUser", "me", pwd=SECRET, roles=["root"]),
            "shut down": client["admin"].command("shutdown"),
        }
        for attempt in attempts.values():
            with pytest.raises(OperationFailure, match="not authorized"):
                await attempt


async def test_mongodb_refuses_clients_without_an_account(mongo_url: str) -> None:
    server = httpx.URL(mongo_url)
    anonymous = f"mongodb://{server.host}:{server.port}/?directConnection=true"

    async with AsyncMongoClient[dict[str, object]](anonymous) as client:
        with pytest.raises(OperationFailure, match="requires authentication"):
            await client[server.path[1:]]["notes"].find_one()


async def test_accounts_are_not_changed_at_servers_of_others(
    amqp_management_url: str, postgres_url: str, mongo_url: str, unique: Unique
) -> None:
    name, server = unique("taken_"), str(httpx.URL(postgres_url).copy_with(path="/postgres"))
    rights = {name: Rights(configure="^$", write="^$", read="^$")}
    database = f"{httpx.URL(mongo_url).path[1:]}_{name}"

    async def set_up(password: str, *, replace: bool) -> list[str]:
        """Try each server; return the causes of the refusals."""
        causes = []
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: asyncio.to_thread(
                set_up_broker,
                amqp_management_url,
                vhost="/",
                rights=rights,
                passwords={name: password},
                replace=replace,
            ),
            lambda: set_up_postgres(
                server,
                service=name,
                database=name,
                password=password,
                owner_password=password,
                replace=replace,
            ),
            lambda: asyncio.to_thread(
                set_up_mongodb,
                mongo_url,
                service=name,
                database=database,
                password=password,
                replace=replace,
            ),
        )
        for step in steps:
            try:
                await step()
            except MissingRightsError as error:
                causes.append(str(error))
        return causes

    assert await set_up("first", replace=False) == []
    assert await set_up("first", replace=False) == []
    refusals = await set_up("second", replace=False)
    assert len(refusals) == 3
    assert all("another password" in cause for cause in refusals)
    assert await set_up("second", replace=True) == []
    assert await set_up("second", replace=False) == []

    administrator = await asyncpg.connect(server)
    await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await administrator.execute(f'DROP ROLE "{name}", "{owner_of(name)}"')
    await administrator.close()
    async with httpx.AsyncClient(base_url=amqp_management_url) as management:
        (await management.delete(f"/api/users/{name}")).raise_for_status()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_account_without_rights_suffices_where_the_accounts_exist(
    amqp_management_url: str, vhost_of_accounts: str, postgres_url: str, mongo_url: str
) -> None:
    secrets = Secrets.load_or_create(SECRETS)
    operator = secrets.accounts["rabbitmq_operator_password"]
    addresses = Addresses(
        amqp_url=vhost_of_accounts,
        amqp_management_url=with_account(amqp_management_url, "operator", operator),
        postgres_url=postgres_url,
        mongo_url=mongo_url,
    )
    wrong = replace(secrets, accounts={**secrets.accounts, "rabbitmq_posts_password": SECRET})

    await asyncio.to_thread(prepare_broker, addresses, secrets, ours=False)
    with pytest.raises(ServersUnavailableError) as missing:
        await asyncio.to_thread(prepare_broker, addresses, wrong, ours=False)
    gc.collect()  # aiormq leaves the socket of a refused log-in to it, with a warning

    text = str(missing.value)
    assert "the broker account operator is not an administrator. Missing: posts (" in text
    assert "rabbitmqctl add_user posts PASSWORD" in text
    assert operator not in text


async def test_missing_rights_are_named_with_the_commands_that_give_them(
    amqp_management_url: str,
    postgres_url: str,
    postgres_roles: tuple[str, str],
    mongo_url: str,
    unique: Unique,
) -> None:
    service, _ = postgres_roles
    operator = Secrets.load_or_create(SECRETS).accounts["rabbitmq_operator_password"]
    management = with_account(amqp_management_url, "operator", operator)
    database = f"{httpx.URL(mongo_url).path[1:]}_{unique('own')}"
    await asyncio.to_thread(
        set_up_mongodb, mongo_url, service="plain", database=database, password=SECRET
    )
    plain = in_database(with_account(mongo_url, "plain", SECRET), database)

    with pytest.raises(MissingRightsError, match="not an administrator") as broker:
        await asyncio.to_thread(
            set_up_broker,
            management,
            vhost="/",
            rights=broker_rights(CALLS),
            passwords=dict.fromkeys((*CALLS, "operator"), "x"),
        )
    with pytest.raises(MissingRightsError, match="permission denied") as postgres:
        await set_up_postgres(
            in_database(with_account(postgres_url, service, SECRET), service),
            service="more",
            database="more",
            password=SECRET,
            owner_password=SECRET,
        )
    with pytest.raises(MissingRightsError, match="may not make users") as mongodb:
        await asyncio.to_thread(
            set_up_mongodb, plain, service="more", database="more", password=SECRET
        )

    assert "rabbitmqctl add_user posts PASSWORD" in broker.value.commands
    assert any("set_permissions -p / users '^(" in each for each in broker.value.commands)
    assert any(each.startswith('CREATE ROLE "more"') for each in postgres.value.commands)
    assert 'db.getSiblingDB("more").createUser({user: "more"' in mongodb.value.commands[0]
