"""Addresses of PostgreSQL: TLS, several hosts, sockets, parameters, and a pooler."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from shared.data import postgres_connections, postgres_sessions
from shared.data.alembic_migrations import migrate
from shared.data.postgres_readiness import newest_revision
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import ServiceError
from tests.notes import PostgresNotes, an_operation, postgres_notes
from tests.people import eventually
from tests.system import free_port
from tools.servers import packages, postgres
from tools.servers.errors import ServersUnavailableError

Unique = Callable[[str], str]
MIGRATIONS = "users:migrations"


async def works(url: str, *, pooled: bool = False) -> str:
    """Migrate, and read and write by a worker's pool; return the name of the application."""
    await asyncio.to_thread(migrate, SecretStr(url), MIGRATIONS)
    async with open_postgres(SecretStr(url), pooled=pooled) as opened:
        assert await opened.stored_revision() == newest_revision(MIGRATIONS)
        async with opened.transaction() as session:
            query = sa.text("SELECT current_setting('application_name')")
            return str((await (await session.connection()).execute(query)).scalar_one())


async def refusal(url: str) -> str:
    """Return why the address does not work, by the worker; `migrate` must fail as well."""
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await asyncio.to_thread(migrate, SecretStr(url), MIGRATIONS)
    async with open_postgres(SecretStr(url)) as opened:
        with pytest.raises(ServiceError) as raised:
            await opened.stored_revision()
    return str(raised.value.__cause__)


@pytest.fixture
def url(postgres_url: str, unique: Unique) -> httpx.URL:
    """The address of a database that does not exist."""
    server = httpx.URL(postgres_url)
    return server.copy_with(path=unique(f"{server.path}_"))


async def test_parameters_and_schemes_of_an_address_are_the_same_for_migrations_and_workers(
    url: httpx.URL,
) -> None:
    names = [
        await works(str(url.copy_merge_params({"application_name": "one"}))),
        await works(str(url.copy_with(scheme="postgres"))),
        await works(str(url.copy_with(scheme="postgresql+asyncpg"))),
        await works(str(url.copy_merge_params({"sslmode": "disable"}))),
        await works(str(url.copy_merge_params({"ssl": "prefer"}))),
    ]

    assert names == ["one", "", "", "", ""]


async def test_several_hosts_are_tried_in_turn(url: httpx.URL) -> None:
    hosts = f"127.0.0.1:{free_port()},{url.host}:{url.port}"

    await works(str(url).replace(f"{url.host}:{url.port}", hosts))


@pytest.fixture
async def silent() -> AsyncIterator[tuple[int, list[object]]]:
    """The port of a server that accepts connections and sends nothing; and its connections."""
    accepted: list[object] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], accepted
    server.close()
    for writer in accepted:
        assert isinstance(writer, asyncio.StreamWriter)
        writer.close()


@pytest.mark.parametrize("form", ["authority", "parameter"])
async def test_host_after_a_silent_one_is_connected(
    url: httpx.URL, silent: tuple[int, list[object]], form: str
) -> None:
    """The silent one, such as a host that drops packets, uses up its own time only."""
    await works(str(url))
    port, accepted = silent
    address = str(url).replace(f"{url.host}:", f"127.0.0.1:{port},{url.host}:")
    if form == "parameter":
        account = f"{url.userinfo.decode()}@"
        hosts = f"host=127.0.0.1,{url.host}&port={port},{url.port}"
        address = f"{url.scheme}://{account}{url.path}?{hosts}"
    async with open_postgres(SecretStr(address)) as opened:
        assert await opened.stored_revision() == newest_revision(MIGRATIONS)

    assert len(accepted) == 1


async def test_silent_hosts_are_tried_for_five_seconds_in_all(
    silent: tuple[int, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (postgres_sessions._CONNECT_TIMEOUT, postgres_connections._ALL_HOSTS_SECONDS) == (2, 5)
    monkeypatch.setattr(postgres_sessions, "_CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_connections, "_ALL_HOSTS_SECONDS", 0.5)
    port, accepted = silent
    hosts = ",".join([f"127.0.0.1:{port}"] * 20)
    async with open_postgres(SecretStr(f"postgresql://x@{hosts}/x")) as opened:
        with pytest.raises(ServiceError) as raised:
            await opened.stored_revision()

    assert str(raised.value.__cause__) == "PostgreSQL does not respond. Check POSTBUS_POSTGRES_URL."
    assert 2 <= len(accepted) <= 3


async def test_server_without_tls_is_refused_if_the_address_requires_it(url: httpx.URL) -> None:
    for name in ("sslmode", "ssl"):
        cause = await refusal(str(url.copy_merge_params({name: "require"})))

        assert "SSL upgrade" in cause


class Certificates:
    """A certificate authority, and a certificate for the name `localhost`."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.certificate, self.key = (
            folder / name for name in ("ca.pem", "server.pem", "server.key")
        )
        authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of a test")])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .issuer_name(issuer)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )
        authority = (
            builder.subject_name(issuer)
            .public_key(authority_key.public_key())
            .serial_number(1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        certificate = (
            builder.subject_name(x509.Name([]))
            .public_key(key.public_key())
            .serial_number(2)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        self.authority.write_bytes(authority.public_bytes(Encoding.PEM))
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an ordinary user can read, with a short name for sockets."""
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@asynccontextmanager
async def running(
    command: list[str], environment: dict[str, str] | None = None
) -> AsyncIterator[None]:
    """Run a server; end it with SIGINT, PostgreSQL's and pgbouncer's clean shutdown."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=sys.stderr, stderr=sys.stderr
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def initialise(binaries: Path, data: Path, certificates: Certificates) -> None:
    """Create the data folder of a server, with its certificate."""
    as_user, environment = postgres._as_ordinary_user(), postgres._environment()
    certificates.key.chmod(0o644)  # copied by another user
    initdb = [str(binaries / "initdb"), "-D", str(data), "--username=postbus", "--auth=trust"]
    subprocess.run(
        [*as_user, *initdb, "--no-sync"], env=environment, check=True, capture_output=True
    )
    for file in (certificates.certificate, certificates.key):
        subprocess.run([*as_user, "cp", str(file), str(data)], check=True)
        subprocess.run([*as_user, "chmod", "600", str(data / file.name)], check=True)


@asynccontextmanager
async def tls_server(folder: Path, certificates: Certificates) -> AsyncIterator[int]:
    """Run a PostgreSQL server with TLS and a socket in `folder`; give its port."""
    binaries = postgres._locate()
    if binaries is None:
        pytest.skip("PostgreSQL's programs are not on this machine")
    data, port = folder / "data", free_port()
    await asyncio.to_thread(initialise, binaries, data, certificates)
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder,
        "ssl": "on",
        "ssl_cert_file": certificates.certificate.name,
        "ssl_key_file": certificates.key.name,
        "fsync": "off",
        "timezone": "GMT",
        "log_timezone": "GMT",
    }
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]

    async def accepts() -> bool:
        try:
            await (await asyncpg.connect(f"postgresql://postbus@127.0.0.1:{port}/postgres")).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    program = [*postgres._as_ordinary_user(), str(binaries / "postgres"), "-D", str(data)]
    async with running([*program, *options], postgres._environment()):
        await eventually(accepts, seconds=30)
        yield port


async def test_certificates_are_verified_as_the_address_says(folder: Path) -> None:
    certificates = Certificates(folder)
    other = folder / "other"
    other.mkdir()
    unknown = Certificates(other)
    async with tls_server(folder, certificates) as port:
        verified = f"sslmode=verify-full&sslrootcert={certificates.authority}"
        unverified = f"sslmode=verify-full&sslrootcert={unknown.authority}"
        await works(f"postgresql://postbus@localhost:{port}/one?{verified}")
        await works(f"postgresql://postbus@localhost:{port}/one?sslmode=require")
        await works(f"postgresql://postbus@/two?host={folder}&port={port}")
        causes = [
            await refusal(f"postgresql://postbus@localhost:{port}/one?{unverified}"),
            await refusal(f"postgresql://postbus@127.0.0.1:{port}/one?{verified}"),
        ]

    assert "certificate verify failed" in causes[0]
    assert "IP address mismatch" in causes[1]


@pytest.fixture
async def pooler(postgres_url: str, folder: Path) -> AsyncIterator[httpx.URL]:
    """The address of pgbouncer in transaction mode, with one connection for each database."""
    try:
        packages.provide(["pgbouncer"])
    except ServersUnavailableError as error:
        pytest.skip(f"pgbouncer cannot be installed: {error}")
    server, port = httpx.URL(postgres_url), free_port()
    program = shutil.which("pgbouncer") or str(packages.UNPACKED / "usr/sbin/pgbouncer")
    users, settings = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    settings.write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nserver_login_retry = 1\n"
    )
    address = server.copy_with(host="127.0.0.1", port=port)

    async def accepts() -> bool:
        try:
            at_server = address.copy_with(path="/postgres")
            await (await asyncpg.connect(str(at_server), statement_cache_size=0)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    environment = os.environ | {"LD_LIBRARY_PATH": packages.library_path()}
    async with running([*postgres._as_ordinary_user(), program, str(settings)], environment):
        await eventually(accepts, seconds=10)
        yield address


async def test_pooler_in_transaction_mode_serves_concurrent_work(
    pooler: httpx.URL, postgres_url: str, unique: Unique
) -> None:
    async with postgres_notes(postgres_url, unique) as notes:
        url = str(pooler.copy_with(path=httpx.URL(notes.url).path))
        async with open_postgres(SecretStr(url), pooled=True) as behind:
            pooled = PostgresNotes(behind, url)

            async def add(number: int) -> None:
                async def handler() -> bytes:
                    await pooled.add(f"{number % 7}")
                    await pooled.count(f"{number}")
                    return b""

                await behind.perform(an_operation(f"{number}"), handler)
                await read(behind)

            await asyncio.gather(*(add(number) for number in range(70)))

            assert [await pooled.count(f"{number}") for number in range(8)] == [10] * 7 + [0]


async def read(postgres: Postgres) -> None:
    async with postgres.reading() as session:
        query = sa.text("SELECT count(*) FROM notes WHERE note = :text")
        await (await session.connection()).execute(query, {"text": "x"})


async def test_missing_database_behind_a_pooler_is_created_and_migrated(
    pooler: httpx.URL, url: httpx.URL
) -> None:
    await works(str(pooler.copy_with(path=url.path)), pooled=True)


async def test_pooler_without_its_setting_is_named_as_the_cause(
    pooler: httpx.URL, postgres_url: str, unique: Unique
) -> None:
    async with postgres_notes(postgres_url, unique) as notes:
        url = str(pooler.copy_with(path=httpx.URL(notes.url).path))
        causes: set[str] = set()
        async with open_postgres(SecretStr(url)) as behind:

            async def try_to_read() -> None:
                try:
                    await read(behind)
                except ServiceError as error:
                    causes.add(str(error.__cause__))

            for _ in range(3):
                await asyncio.gather(*(try_to_read() for _ in range(10)))

    assert any("POSTBUS_POSTGRES_POOLED" in cause for cause in causes)
