"""Caches of functions do not grow without bound with the input of clients."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import gateway
import posts
import shared
import users

KEYS_OF_THE_PROGRAM = {
    "gateway.documentation_routes._documents",
    "gateway.static_documents.page_text",
    "gateway.update_masks.resource_of",
    "shared.bounds._counter",
    "shared.bounds.max_elements",
    "shared.field_limit._plan",
    "shared.output_only.is_output_only",
    "shared.output_only.remover",
    "shared.protojson.writer._writer",
    "shared.wire.message_class",
}
"""Caches with keys of the contract or of the package, such as message types."""


@lru_cache
def _cached() -> None:
    """Have the type of every cached function."""


def cached_functions() -> Iterator[Any]:
    for package in (gateway, posts, shared, users):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith("users.migrations") and "__main__" not in found.name:
                values = vars(importlib.import_module(found.name)).values()
                yield from (each for each in values if type(each) is type(_cached))


def test_caches_without_a_bound_have_no_keys_of_clients() -> None:
    unbounded = {
        f"{each.__module__}.{each.__qualname__}"
        for each in cached_functions()
        if each.cache_parameters()["maxsize"] is None
    }

    assert unbounded == KEYS_OF_THE_PROGRAM
