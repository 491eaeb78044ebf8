"""Settings with addresses of databases: a malformed one is refused before anything connects."""

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from shared.data.mongo_addresses import MongoUrl
from shared.data.postgres_addresses import PostgresUrl
from users.settings import UsersSettings


class _Postgres(BaseModel):
    url: PostgresUrl


class _Mongo(BaseModel):
    url: MongoUrl


POSTGRES = [
    "postgresql://user:password@host:5432/name",
    "postgres://user@host/name",
    "postgresql+asyncpg://user:@host/name",
    "postgresql://us%40er:p%2Fa%3Fs%23s%40@host/n%2Fame",
    "postgresql://user:password@[::1]:5432,[::2],host/name",
    "postgresql://user:password@host",
    "postgresql:///name?host=/run/postgresql&port=5433",
    "postgresql://user@%2Frun%2Fpostgresql/name",
    "postgresql://user@h/name?host=ignored&sslmode=require&application_name=a%40b",
]
MONGO = [
    "mongodb://user:password@host:27017/name",
    "mongodb://host/name",
    "mongodb://us%40er:p%2Fa%3Fs%23s%40@host/name?authSource=admin&tls=true",
    "mongodb://user:password@[::1]:27017,host/name?replicaSet=rs0",
    "mongodb+srv://user:password@cluster.example/name?srvMaxHosts=2",
]


@pytest.mark.parametrize(
    ("model", "address"),
    [*((_Postgres, each) for each in POSTGRES), *((_Mongo, each) for each in MONGO)],
)
def test_address_is_accepted_without_the_spaces_around_it(
    model: type[_Postgres | _Mongo], address: str
) -> None:
    assert model(url=SecretStr(f" {address}\n")).url.get_secret_value() == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host:5432/name",
        "mysql://user:hunter2@host/name",
        "postgresql://user:hunter2@host:0/name",
        "postgresql://user:hunter2@host:70000/name",
        "postgresql://user:hunter2@host:port/name",
        "postgresql://user:hunter2@host:5432:5433/name",
        "postgresql://user:hunter2@::1/name",
        "postgresql://user:hunter2@[::1/name",
        "postgresql://user:hunter2/x@host/name",
        "postgresql://user:hunter2?x@host/name",
        "postgresql://user:hunter2#x@host/name",
        "postgresql://user:1234/hunter2@host/name",
        "postgresql://user:hunter2@x@host/name",
        "postgresql://user:hunter2@host/name?port=0",
        "postgresql://user:hunter2@host/name?port=5432,x",
        "postgresql://user:hunter2@host/name?sslmode",
    ],
)
def test_malformed_address_of_postgresql_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ValidationError, match="the address of PostgreSQL must have") as raised:
        _Postgres(url=SecretStr(address))

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "must have the form"),
        ("host:27017/name", "must have the form"),
        ("http://user:hunter2@host/name", "must have the form"),
        ("mongodb://user:hunter2@host:0/name", "must have the form"),
        ("mongodb://user:hunter2@host:70000/name", "must have the form"),
        ("mongodb://user:hunter2@host:port/name", "must have the form"),
        ("mongodb://user:hunter2@host,/name", "must have the form"),
        ("mongodb://user:hunter2@::1/name", "must have the form"),
        ("mongodb://user:hunter2/x@host/name", "must have the form"),
        ("mongodb://user:hunter2?x=1@host/name", "must have the form"),
        ("mongodb://user:hunter2@x@host/name", "must have the form"),
        ("mongodb://user:hunter2%@host/name", "must have the form"),
        ("mongodb://user:hunter2@host", "the name of the database is missing"),
        ("mongodb://user:hunter2@host/?tls=true", "the name of the database is missing"),
        ("mongodb://user:hunter2@host/name?colour=hunter2&tls=true", "these: colour, tls"),
        ("mongodb://user:hunter2@host/name?tls=maybe", "these: tls"),
        ("mongodb://user:hunter2@host/name?tls", "these: tls"),
    ],
)
def test_malformed_address_of_mongodb_is_refused_without_its_password(
    address: str, reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason) as raised:
        _Mongo(url=SecretStr(address))

    assert "hunter2" not in str(raised.value)


def test_malformed_address_in_the_settings_names_the_setting() -> None:
    with pytest.raises(ValidationError) as raised:
        UsersSettings(
            amqp_url=SecretStr("amqp://u:p@a"),
            verification_keys="{}",
            postgres_url=SecretStr("postgresql://user:hunter2@host:0/name"),
            page_token_key=SecretStr("x"),
            signing_key=SecretStr("x"),
        )

    assert [error["loc"] for error in raised.value.errors()] == [("postgres_url",)]
