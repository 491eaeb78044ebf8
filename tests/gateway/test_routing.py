"""Verb and path are matched together."""

import itertools

import pytest

from gateway.routing import ContractRoutes

ROUTES = {
    ("GET", "/v1/items/{id}"): "get",
    ("POST", "/v1/items/latest"): "refresh",
    ("GET", "/v1/items/newest"): "newest",
    ("GET", "/v1/items/{id}:export"): "export",
    ("POST", "/v1/{collection}/{id}"): "any",
    ("DELETE", "/v1/items/{id}"): "delete",
}


@pytest.mark.parametrize(
    ("verb", "path", "found"),
    [
        ("GET", b"/v1/items/latest", ("get", {"id": "latest"})),
        ("HEAD", b"/v1/items/latest", ("get", {"id": "latest"})),
        ("POST", b"/v1/items/latest", ("refresh", {})),
        ("GET", b"/v1/items/newest", ("newest", {})),
        ("DELETE", b"/v1/items/newest", ("delete", {"id": "newest"})),
        ("POST", b"/v1/items/newest", ("any", {"collection": "items", "id": "newest"})),
        ("GET", b"/v1/items/a:export", ("export", {"id": "a"})),
        ("GET", b"/v1/items/a%2Fb", ("get", {"id": "a/b"})),
        ("DELETE", b"/v1/items/a:export", None),
        ("DELETE", b"/v1/items/a%3Aexport", ("delete", {"id": "a:export"})),
        ("DELETE", b"/v1/items/a:other", ("delete", {"id": "a:other"})),
        ("PUT", b"/v1/items/latest", None),
        ("PATCH", b"/v1/items/latest", None),
        ("GET", b"/v1/items/", None),
        ("GET", b"/v1/items/a/b", None),
    ],
)
def test_route_of_another_verb_shadows_nothing(
    verb: str, path: bytes, found: tuple[str, dict[str, str]] | None
) -> None:
    for order in itertools.islice(itertools.permutations(ROUTES.items()), 0, 720, 37):
        assert ContractRoutes(dict(order)).find(verb, path) == found


@pytest.mark.parametrize("first", ["/v1/{z}/x", "/v1/{a}/x"])
def test_literal_segment_precedes_a_parameter_of_any_name(first: str) -> None:
    routes = ContractRoutes({("GET", "/v1/{m}/{n}"): "any", ("GET", first): "literal"})

    assert (routes.find("GET", b"/v1/1/x") or ("none",))[0] == "literal"


def test_path_has_the_verbs_of_all_matching_routes() -> None:
    routes = ContractRoutes(ROUTES)

    assert routes.verbs(b"/v1/items/latest") == ["DELETE", "GET", "HEAD", "POST"]
    assert routes.verbs(b"/v1/other/x") == ["POST"]
    assert routes.verbs(b"/v1/items/a:export") == ["GET", "HEAD"]
    assert routes.verbs(b"/nowhere") == []
