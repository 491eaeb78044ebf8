"""Logs have no values of rows: messages of drivers and parsers quote them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr, ValidationError
from pymongo.errors import PyMongoError
from sqlalchemy.exc import SQLAlchemyError

from shared.data.mongo_database import open_mongo
from shared.data.postgres_sessions import Postgres
from shared.logged_errors import describe, render
from tests.notes import PostgresNotes, postgres_notes

Unique = Callable[[str], str]
SECRET = "alice@example.com"  # noqa: S105  # a value of a row
PROGRAM = f"""
import asyncio, logging, sys, structlog
from shared.runtime.logs import configure_logs
configure_logs("test", "json")
async def fail(): raise ValueError("{SECRET}")
async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
asyncio.run(main())
try:
    raise KeyError("{SECRET}")
except KeyError as error:
    structlog.get_logger().exception("one")
    structlog.get_logger().error("two", exc_info=error)
    logging.getLogger("library").exception("three")
raise ValueError("{SECRET}")
"""


async def unique_violation(postgres: Postgres) -> SQLAlchemyError:
    """Return the error of a second row with the same value, unforeseen by the code."""
    async with postgres.transaction() as session:
        connection = await session.connection()
        await connection.execute(sa.text("CREATE TABLE people (email text PRIMARY KEY)"))
        insert, row = sa.text("INSERT INTO people VALUES (:email)"), {"email": SECRET}
        await connection.execute(insert, row)
        with pytest.raises(SQLAlchemyError) as raised:
            await connection.execute(insert, row)
        await session.rollback()
    return raised.value


async def test_error_of_postgresql_is_logged_without_values(
    postgres_url: str, unique: Unique
) -> None:
    async with postgres_notes(postgres_url, unique) as notes:
        assert isinstance(notes, PostgresNotes)
        error = await unique_violation(notes.store)

    assert SECRET not in render(error)
    assert "UniqueViolationError (23505)" in render(error)


async def test_error_of_mongodb_is_logged_without_values(mongo_url: str, unique: Unique) -> None:
    async with open_mongo(SecretStr(mongo_url)) as mongo:
        collection = mongo.database[unique("people")]
        await collection.insert_one({"_id": SECRET})
        with pytest.raises(PyMongoError) as raised:
            await collection.insert_one({"_id": SECRET})

    assert SECRET in str(raised.value)
    assert SECRET not in render(raised.value)
    assert "DuplicateKeyError (11000)" in render(raised.value)


def test_input_of_a_parser_is_not_logged() -> None:
    class Numbers(BaseModel):
        number: int

    with pytest.raises(ValidationError) as raised:
        Numbers.model_validate({"number": SECRET})
    chained = RuntimeError("the row is broken")
    chained.__cause__ = raised.value

    assert SECRET in str(raised.value)
    for error in (raised.value, chained, ExceptionGroup("two", [raised.value, ValueError(SECRET)])):
        assert SECRET not in render(error)
    assert render(chained).startswith("RuntimeError: the row is broken")
    assert describe(KeyError(SECRET)) == "KeyError"


def test_rendered_errors_are_bounded() -> None:
    error: BaseException = RuntimeError("x" * 10_000)
    for _ in range(100):
        outer = RuntimeError("x" * 10_000)
        outer.__cause__, error = error, outer

    assert render(error).count("RuntimeError") == 5
    assert len(render(error)) < 5 * 520


async def test_no_logger_of_a_process_writes_values_of_exceptions() -> None:
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", PROGRAM], capture_output=True, text=True
    )

    assert ran.returncode == 1
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["event"] for line in lines] == [
        "Task exception was never retrieved",
        "one",
        "two",
        "three",
        "process.failed",
    ]
    assert [line["exception"].rpartition("\n")[2] for line in lines] == [
        "ValueError",
        "KeyError",
        "KeyError",
        "KeyError",
        "ValueError",
    ]
    assert SECRET not in ran.stderr
