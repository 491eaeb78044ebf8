"""The names in a new service: package, resource, messages and database."""

import importlib.util
import keyword
import re
from dataclasses import dataclass

from tools.paths import ROOT

_LONGEST = 30
_PATTERN = re.compile(r"[a-z]+(_[a-z]+)*")
_TITLES = {"postgres": "PostgreSQL", "mongo": "MongoDB"}
_LIBRARIES = {
    "postgres": ("alembic", "sqlalchemy[asyncio]", "sqlmodel"),
    "mongo": ("odmantic",),
}
_URLS = {
    "postgres": "postgresql://user:password@host:port/name",
    "mongo": "mongodb://host:port/name, a replica set",
}
_RESERVED = ("rabbitmq", "mongodb", "mongo", "postgres", "dev", "events")  # servers, logs, files
_USED = ("code", "context", "datetime", "field", "model", "self")  # in the templates


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The name of a service, of its resource in singular and plural, and its database."""

    service: str
    thing: str
    database: str

    def placeholders(self) -> dict[str, str]:
        """Return the values of the templates' placeholders."""
        words = self.thing.replace("_", " ")
        article = "an" if words[0] in "aeiou" else "a"
        title = self.service.replace("_", " ").capitalize()
        first, *rest = self.thing.split("_")
        return {
            "name": self.service,
            "Name": _camel(self.service),
            "title": title,
            "path": f"/v1/{self.service.replace('_', '-')}",
            "thing": self.thing,
            "Thing": _camel(self.thing),
            "THING": self.thing.upper(),
            "thing_json": first + "".join(map(str.capitalize, rest)),
            "words": words,
            "a_thing": f"{article} {words}",
            "A_thing": f"{article} {words}".capitalize(),
            "extra": self.database,
            "Url": f"{self.database.capitalize()}Url",
            "database": _TITLES[self.database],
            "libraries": "".join(f'    "{each}",\n' for each in _LIBRARIES[self.database]),
            "url": _URLS[self.database],
        }


def names_of(service: str, thing: str, database: str) -> Names:
    """Return the checked names; SystemExit with the reason if they cannot be used."""
    thing = thing or _singular(service)
    for name in (service, thing):
        if not _PATTERN.fullmatch(name) or keyword.iskeyword(name) or len(name) > _LONGEST:
            raise SystemExit(
                f"{name!r} is not a valid name: use up to {_LONGEST} lower-case letters, with"
                " underscores between words, such as polls, and no word of Python's own."
            )
    if _taken(service):
        raise SystemExit(f"The name {service} is taken: choose another.")
    if thing in _USED:
        raise SystemExit(f"{thing} has a meaning in the code: choose another with --thing.")
    return Names(service=service, thing=thing, database=database)


def _taken(service: str) -> bool:
    """Return whether a folder, a contract, a server or an importable module has the name."""
    contracts = ROOT / "gen" / "postbus"
    folders = (ROOT / service, ROOT / "tests" / service, ROOT / "proto" / "postbus" / service)
    return (
        any(path.exists() for path in (*folders, contracts / service, contracts / f"{service}.py"))
        or service in _RESERVED
        or importlib.util.find_spec(service) is not None
    )


def _singular(service: str) -> str:
    if service.endswith("ies"):
        return f"{service[:-3]}y"
    return service if service.endswith(("ss", "us", "is")) else service.removesuffix("s")


def _camel(name: str) -> str:
    return "".join(map(str.capitalize, name.split("_")))
