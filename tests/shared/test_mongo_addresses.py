"""Addresses of MongoDB: users, TLS, options, and servers that cannot do the work."""

import datetime
import gc
import ipaddress
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from shared.data.mongo_database import open_mongo
from shared.data.mongo_migrations import migrate
from shared.errors import Code, NotReadyError, ServiceError
from shared.outbox import mongo_errors
from shared.outbox.mongo_errors import driver_errors
from tests.mongod import Mongod, run_mongod
from tests.notes import MongoNotes, an_operation

Unique = Callable[[str], str]
USER, PASSWORD = "üser @:/?#%", "p@ss:/?#[]% wörd"  # of a server of this test
USER_QUOTED = "%C3%BCser%20%40%3A%2F%3F%23%25"
PASSWORD_QUOTED = "p%40ss%3A%2F%3F%23%5B%5D%25%20w%C3%B6rd"  # noqa: S105


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mongod")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "mongod.pem"
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private = key.private_bytes(serialization.Encoding.PEM, *form)
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.fixture(scope="module")
def server(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A server with users and TLS."""
    folder = tmp_path_factory.mktemp("mongod")
    with run_mongod(folder, users=True, tls=certificate) as running:
        yield running


@pytest.fixture
async def posts(server: Mongod, unique: Unique) -> str:
    """The name of a database that USER may read and write."""
    name = unique("pösts-")
    async with AsyncMongoClient[dict[str, object]](server.url()) as client:
        roles = [{"role": "readWrite", "db": name}]
        await client[name].command("createUser", USER, pwd=PASSWORD, roles=roles)
    return name


async def write(url: str) -> int:
    """Migrate and write a note in a unit of work; return the number of notes."""
    async with open_mongo(SecretStr(url)) as mongo:
        await mongo.ping()
        await migrate(mongo, [])
        await mongo.create_indexes()
        notes = MongoNotes(mongo)

        async def handler() -> bytes:
            await notes.add("text")
            return b""

        await mongo.perform(an_operation("write"), handler)
        return await notes.count("text")


@pytest.mark.parametrize(
    "options",
    [
        "readPreference=secondaryPreferred",
        "readPreference=nearest&readPreferenceTags=dc:a&maxStalenessSeconds=120",
        "readConcernLevel=linearizable",
        "w=0&journal=false",
        "w=1&retryWrites=false&retryReads=false",
        "maxPoolSize=3&compressors=zlib&appName=posts",
        "replicaSet=test",
    ],
)
async def test_reads_and_writes_do_not_depend_on_options_of_the_address(
    options: str, server: Mongod, unique: Unique
) -> None:
    assert await write(server.url(unique("options"), options)) == 1


async def test_every_option_that_correctness_depends_on_is_set() -> None:
    url = "mongodb://h/x?readPreference=secondary&w=0&journal=false&readConcernLevel=available"
    async with open_mongo(SecretStr(f"{url}&retryWrites=false&retryReads=false")) as mongo:
        database, options = mongo.database, mongo.database.client.options

    assert database.read_preference == ReadPreference.PRIMARY
    assert database.read_concern == ReadConcern("local")
    assert database.write_concern == WriteConcern("majority", j=True)
    assert (options.retry_writes, options.retry_reads) == (True, True)


async def test_user_and_database_with_odd_names_can_write(server: Mongod, posts: str) -> None:
    login = f"{USER_QUOTED}:{PASSWORD_QUOTED}"
    url = f"mongodb://{login}@127.0.0.1:{server.port}/{posts}?directConnection=true"

    assert await write(url) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_with_an_own_authority_is_verified(
    server: Mongod, certificate: Path, unique: Unique
) -> None:
    options = "directConnection=true&tls=true"

    assert await write(server.url(unique("tls"), f"{options}&tlsCAFile={certificate}")) == 1
    with pytest.raises(ServiceError, match="DATABASE_UNAVAILABLE"), driver_errors():
        await write(server.url(unique("tls"), options))
    gc.collect()  # the driver does not close the sockets of failed handshakes


@pytest.mark.parametrize(
    ("login", "code", "remedy"),
    [
        (f"{USER_QUOTED}:wrong", 18, "check user, password and authSource in the address"),
        (f"{USER_QUOTED}:{PASSWORD_QUOTED}", 13, "give the user the role readWrite"),
    ],
)
async def test_wrong_password_and_missing_rights_name_their_remedy(
    login: str, code: int, remedy: str, server: Mongod, posts: str, unique: Unique
) -> None:
    database = posts if code == 18 else unique("foreign")
    options = f"directConnection=true&authSource={posts}"
    url = f"mongodb://{login}@127.0.0.1:{server.port}/{database}?{options}"
    mongo_errors._log._written.clear()
    async with open_mongo(SecretStr(url)) as mongo:
        notes = MongoNotes(mongo)

        async def handler() -> bytes:
            await notes.add("text")
            return b""

        with structlog.testing.capture_logs() as logs, pytest.raises(ServiceError) as raised:
            await mongo.perform(an_operation("write"), handler)

    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    [line] = logs
    assert (line["code"], line["log_level"]) == (code, "error")
    assert remedy in line["cause"]
    assert line["cause"] == str(raised.value.__cause__)
    assert PASSWORD not in json.dumps(logs, ensure_ascii=False)


async def test_server_without_a_replica_set_is_not_ready(tmp_path: Path) -> None:
    with run_mongod(tmp_path, replica_set=False) as running:
        async with open_mongo(SecretStr(running.url())) as mongo:
            with pytest.raises(NotReadyError, match="MongoDB needs a replica set"):
                await mongo.ping()
            with pytest.raises(NotReadyError, match="MongoDB needs a replica set"):
                await migrate(mongo, [])
            with pytest.raises(NotReadyError, match="MongoDB needs a replica set"):
                await mongo.create_indexes()


async def test_member_that_is_not_the_primary_is_not_ready(tmp_path: Path) -> None:
    with run_mongod(tmp_path) as running:
        async with open_mongo(SecretStr(running.url())) as mongo:
            await mongo.ping()
            admin = mongo.database.client.admin
            await admin.command({"replSetStepDown": 30, "force": True})
            with pytest.raises(NotReadyError, match="no primary at this address"):
                await mongo.ping()
