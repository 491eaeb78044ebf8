"""Author data in replies: profile changes, for the user and for other users."""

from collections.abc import Callable

from tests.people import Client, Person, eventually

Unique = Callable[[str], str]


async def test_user_reads_an_own_rename_at_once(
    as_alice: Client, alice: Person, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    path = f"/v1/posts/{post['id']}"
    await as_alice.done("POST", f"{path}/comments", {"body": "Mine"})

    for _ in range(20):
        name = unique("renamed")
        await as_alice.done("PATCH", "/v1/me", {"username": name, "displayName": f"D {name}"})
        authors = [
            (await as_alice.done("GET", path))["author"],
            (await as_alice.done("GET", f"/v1/posts?author={name}"))["posts"][0]["author"],
            (await as_alice.done("GET", f"{path}/comments"))["comments"][0]["author"],
            (await as_alice.done("POST", "/v1/posts", {"title": "New"}))["author"],
        ]
        assert {(each["username"], each["displayName"]) for each in authors} == {
            (name, f"D {name}")
        }


async def test_other_users_read_a_rename_when_its_event_arrives(
    as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    path = f"/v1/posts/{post['slug']}"
    await as_anonymous.done("GET", path)  # the author is cached
    name = unique("renamed")
    profile = {"username": name, "imageUrl": "https://example.com/a.png"}
    await as_alice.done("PATCH", "/v1/me", profile)

    async def renamed() -> bool:
        author = (await as_anonymous.done("GET", path))["author"]
        return (author["username"], author["imageUrl"]) == (name, profile["imageUrl"])

    await eventually(renamed)
