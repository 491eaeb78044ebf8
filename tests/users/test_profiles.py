"""Accounts and profiles: changes, rules, versions and search."""

from collections.abc import Callable

import httpx
import pytest

from tests.people import Client, Person, sign_up

Unique = Callable[[str], str]


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("alice"))


@pytest.fixture
def me(client: httpx.AsyncClient, alice: Person) -> Client:
    return Client(client, alice)


async def test_each_field_changes_alone(me: Client, alice: Person, unique: Unique) -> None:
    name = unique("New-name_")
    text = "👩‍👩‍👧 שלום\n\tline"
    changes = [
        ("displayName", "Zoë e\u0301 日本"),
        ("bio", text),
        ("imageUrl", "https://example.com/a.png?x=1"),
        ("email", f"{name}@example.com"),
        ("username", name),
    ]

    for version, (field, value) in enumerate(changes, start=2):
        changed = await me.done("PATCH", "/v1/me", {field: value})
        assert (changed[field], changed["version"]) == (value, str(version))
    mine = await me.done("GET", "/v1/me")
    profile = await me.done("GET", f"/v1/users/{name.upper()}")
    assert {field: mine[field] for field, _ in changes} == dict(changes)
    assert profile["displayName"] == "Zoë e\u0301 日本"
    assert "email" not in profile
    old = await me.refused("GET", f"/v1/users/{alice.username}")
    assert old == (404, "USER_NOT_FOUND")


async def test_patch_that_changes_nothing_leaves_the_version(me: Client) -> None:
    await me.done("PATCH", "/v1/me", {"bio": "Same"})

    same = await me.done("PATCH", "/v1/me", {"bio": "Same"})
    empty = await me.done("PATCH", "/v1/me", {})
    cleared = await me.done("PATCH", "/v1/me", {"bio": None})

    assert (same["version"], empty["version"]) == ("2", "2")
    assert (cleared["version"], cleared["bio"]) == ("3", "")


async def test_username_and_email_address_cannot_be_removed(me: Client) -> None:
    for field, reason in (("username", "USERNAME_MISSING"), ("email", "EMAIL_MISSING")):
        response = await me.send("PATCH", "/v1/me", {field: None})
        assert (response.status_code, response.json()["reason"]) == (422, reason)
        assert [each["field"] for each in response.json()["violations"]] == [field]


async def test_taken_name_or_address_is_refused_in_any_case(
    me: Client, client: httpx.AsyncClient, unique: Unique
) -> None:
    other = (await sign_up(client, unique("other"))).username

    for field, value, reason in (
        ("username", other.upper(), "USERNAME_TAKEN"),
        ("email", f"{other}@EXAMPLE.COM", "EMAIL_TAKEN"),
    ):
        assert await me.refused("PATCH", "/v1/me", {field: value}) == (409, reason)
    assert (await me.done("GET", "/v1/me"))["version"] == "1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", "ab"),
        ("username", "x" * 41),
        ("username", "\u0440\u0430ypal"),
        ("username", "ada lovelace"),
        ("username", "\u0430lice"),
        ("username", "ⓐdmin"),
        ("username", "a.b/c"),
        ("email", "not an address"),
        ("displayName", "x" * 51),
        ("displayName", "a\u0000b"),
        ("displayName", "a\u0085b"),
        ("displayName", "a\nb"),
        ("displayName", "\u202eevil"),
        ("displayName", "a\u2066b"),
        ("bio", "x" * 1001),
        ("bio", "a\u0000"),
        ("imageUrl", "javascript:alert(1)"),
        ("imageUrl", "https://example.com/a b"),
        ("imageUrl", "data:image/png;base64,AAAA"),
    ],
)
async def test_field_that_violates_a_rule_is_reported(field: str, value: str, me: Client) -> None:
    response = await me.send("PATCH", "/v1/me", {field: value})

    assert response.status_code == 422, response.text
    assert {each["field"] for each in response.json()["violations"]} == {field}


async def test_server_controlled_fields_are_refused_or_ignored(me: Client) -> None:
    before = await me.done("GET", "/v1/me")
    for field in ("passwordHash", "expectedVersion", "followed"):
        assert (await me.refused("PATCH", "/v1/me", {field: "1"}))[0] == 422, field
    read_only = {"id": "1", "followerCount": 9, "version": "9", "createdAt": None}

    assert await me.done("PATCH", "/v1/me", read_only) == before


async def test_change_with_a_stale_version_is_refused(me: Client) -> None:
    read = await me.send("GET", "/v1/me")
    etag = read.headers["ETag"]

    changed = await me.send("PATCH", "/v1/me", {"bio": "One"}, If_Match=etag)
    stale = await me.send("PATCH", "/v1/me", {"bio": "Two"}, If_Match=etag)
    known = await me.send("GET", "/v1/me", If_None_Match=changed.headers["ETag"])
    deleted = await me.send("DELETE", "/v1/me", If_Match=etag)

    assert (changed.status_code, known.status_code) == (200, 304)
    assert {(each.status_code, each.json()["reason"]) for each in (stale, deleted)} == {
        (412, "VERSION_MISMATCH")
    }


async def test_search_matches_beginnings_of_words_of_names(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    mark = unique("q")
    people = []
    for display_name in ("Renée Łuk", "Über-Maß", "日本語", "O'Brien"):
        person = await sign_up(client, unique("s"))
        body = {"displayName": f"{display_name} {mark}"}
        await Client(client, person).done("PATCH", "/v1/me", body)
        people.append(person)
    anyone = Client(client)

    async def found(q: str) -> set[str]:
        page = await anyone.done("GET", f"/v1/users?q={q}+{mark}&includeTotal=true")
        assert page["total"] == len(page["profiles"])
        return {each["id"] for each in page["profiles"]}

    everyone = {person.id for person in people}
    assert await found("") == everyone
    assert await found("rene") == await found("RENÉE") == {people[0].id}
    assert await found("mass") == await found("uber") == {people[1].id}
    assert await found("日本") == {people[2].id}
    assert await found("brien o") == {people[3].id}
    assert await found(people[3].username[:-1]) == {people[3].id}
    assert await found("ienée") == set()
    for q in ("🎉", "'", "':*", "\\", "%25", "a%00"):
        page = await anyone.done("GET", f"/v1/users?q={q}-nothing{mark}x")
        assert page["profiles"] == []


async def test_search_pages_contain_each_user_once_during_sign_ups(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    prefix = unique("page")
    before = [await sign_up(client, f"{prefix}{letter}") for letter in "bdfhj"]
    found, token = [], ""

    for letter in "aceik":
        path = f"/v1/users?q={prefix}&pageSize=2&pageToken={token}"
        page = await Client(client).done("GET", path)
        found += [each["username"] for each in page["profiles"]]
        await sign_up(client, f"{prefix}{letter}")
        token = page["nextPageToken"]
        if not token:
            break

    assert found == sorted(set(found))
    assert {person.username for person in before} <= set(found)
    page = await Client(client).done("GET", f"/v1/users?q={prefix}&pageSize=1")
    other = f"/v1/users?q={prefix}x&pageToken={page['nextPageToken']}"
    assert await Client(client).refused("GET", other) == (422, "PAGE_TOKEN_INVALID")
