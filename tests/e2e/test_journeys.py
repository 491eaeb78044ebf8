"""User journeys through the gateway and both workers to both databases."""

from collections.abc import Callable
from datetime import timedelta

import httpx
from uuid_utils.compat import uuid7

from tests.people import PASSWORD, sign_up
from tests.tokens import TokenMaker

Unique = Callable[[str], str]


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert len(body["traceId"]) == 32
    return answer.status_code, body["reason"]


async def test_post_is_created_read_changed_listed_and_deleted(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))

    created = await client.post(
        "/v1/posts", json={"title": "Hello", "body": "World"}, headers=alice.headers
    )
    assert created.status_code == 201
    post = created.json()
    assert (post["title"], post["body"], post["version"]) == ("Hello", "World", "1")
    assert post["author"] == {
        "id": alice.id,
        "username": alice.username,
        "displayName": "",
        "imageUrl": "",
        "followed": False,
    }

    assert (await client.get(f"/v1/posts/{post['id']}")).json() == post

    changed = await client.patch(
        f"/v1/posts/{post['id']}", json={"title": "Goodbye"}, headers=alice.headers
    )
    assert changed.status_code == 200
    assert changed.json()["title"] == "Goodbye"
    assert changed.json()["body"] == "World"
    assert changed.json()["version"] == "2"

    listed = await client.get("/v1/posts", params={"authorId": alice.id})
    assert [each["id"] for each in listed.json()["posts"]] == [post["id"]]

    deleted = await client.delete(f"/v1/posts/{post['id']}", headers=alice.headers)
    assert (deleted.status_code, deleted.content) == (204, b"")
    gone = await client.get(f"/v1/posts/{post['id']}")
    assert problem_of(gone) == (404, "POST_NOT_FOUND")


async def test_read_resource_can_be_changed_and_sent_back_whole(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    created = await client.post("/v1/posts", json={"title": "Hello"}, headers=alice.headers)
    post_path = f"/v1/posts/{created.json()['id']}"
    comments = f"{post_path}/comments"
    comment = await client.post(comments, json={"body": "First"}, headers=alice.headers)
    post = (await client.get(post_path, headers=alice.headers)).json()
    me = (await client.get("/v1/me", headers=alice.headers)).json()

    for path, document, name in (
        (post_path, post, "title"),
        (f"/v1/comments/{comment.json()['id']}", comment.json(), "body"),
        ("/v1/me", me, "bio"),
    ):
        response = await client.patch(path, json=document | {name: "New"}, headers=alice.headers)
        assert response.status_code == 200, response.text
        assert response.json()[name] == "New"


async def test_pages_hold_every_post_once(client: httpx.AsyncClient, unique: Unique) -> None:
    alice = await sign_up(client, unique("alice"))
    for number in range(5):
        post = {"title": f"Post {number}"}
        assert (await client.post("/v1/posts", json=post, headers=alice.headers)).is_success

    titles, token = [], ""
    for _ in range(3):
        page = await client.get(
            "/v1/posts", params={"authorId": alice.id, "pageSize": 2, "pageToken": token}
        )
        titles += [post["title"] for post in page.json()["posts"]]
        token = page.json()["nextPageToken"]

    assert titles == ["Post 4", "Post 3", "Post 2", "Post 1", "Post 0"]
    assert token == ""


async def test_me_is_the_caller(client: httpx.AsyncClient, unique: Unique) -> None:
    alice = await sign_up(client, unique("alice"))

    me = (await client.get("/v1/me", headers=alice.headers)).json()
    profile = (await client.get(f"/v1/users/{alice.username.upper()}")).json()

    assert (me["id"], me["email"]) == (alice.id, f"{alice.username}@example.com")
    assert profile == {
        "id": alice.id,
        "username": alice.username,
        "createdAt": me["createdAt"],
        "displayName": "",
        "bio": "",
        "imageUrl": "",
        "followerCount": 0,
        "followingCount": 0,
        "followed": False,
        "version": "1",
    }


async def test_taken_username_and_email_are_conflicts(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    other = unique("other")

    same_name = await client.post(
        "/v1/auth/signup",
        json={
            "username": alice.username.upper(),
            "email": f"{other}@example.com",
            "password": PASSWORD,
        },
    )
    same_email = await client.post(
        "/v1/auth/signup",
        json={
            "username": other,
            "email": f"{alice.username}@EXAMPLE.com",
            "password": PASSWORD,
        },
    )

    assert problem_of(same_name) == (409, "USERNAME_TAKEN")
    assert problem_of(same_email) == (409, "EMAIL_TAKEN")


async def test_wrong_password_and_unknown_account_look_alike(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))

    wrong = await client.post(
        "/v1/auth/login", json={"login": alice.username, "password": "wrong password"}
    )
    unknown = await client.post(
        "/v1/auth/login", json={"login": unique("nobody"), "password": "wrong password"}
    )

    assert problem_of(wrong) == problem_of(unknown) == (401, "WRONG_CREDENTIALS")
    assert wrong.json()["detail"] == unknown.json()["detail"]


async def test_tokens_that_are_expired_forged_or_missing_are_refused(
    client: httpx.AsyncClient, tokens: TokenMaker, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    expired = tokens.token(alice.id, lifetime=timedelta(minutes=-1))
    forged = TokenMaker().token(alice.id)

    async def me(headers: dict[str, str]) -> tuple[int, str]:
        response = await client.get("/v1/me", headers=headers)
        assert response.headers["www-authenticate"].startswith("Bearer")
        return problem_of(response)

    assert await me({"Authorization": f"Bearer {expired}"}) == (401, "TOKEN_EXPIRED")
    assert await me({"Authorization": f"Bearer {forged}"}) == (401, "TOKEN_INVALID")
    assert await me({"Authorization": "Bearer x.y.z"}) == (401, "TOKEN_INVALID")
    assert await me({}) == (401, "TOKEN_MISSING")


async def test_only_the_author_changes_or_deletes_a_post(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    mallory = await sign_up(client, unique("mallory"))
    post = (await client.post("/v1/posts", json={"title": "Mine"}, headers=alice.headers)).json()
    url = f"/v1/posts/{post['id']}"

    changed = await client.patch(url, json={"title": "Hers"}, headers=mallory.headers)
    deleted = await client.delete(url, headers=mallory.headers)

    assert problem_of(changed) == problem_of(deleted) == (403, "NOT_THE_AUTHOR")
    assert (await client.get(url)).json() == post


async def test_unknown_ids_are_not_found(client: httpx.AsyncClient, unique: Unique) -> None:
    alice = await sign_up(client, unique("alice"))
    url = f"/v1/posts/{uuid7()}"

    assert problem_of(await client.get(url)) == (404, "POST_NOT_FOUND")
    changed = await client.patch(url, json={"title": "New"}, headers=alice.headers)
    assert problem_of(changed) == (404, "POST_NOT_FOUND")
    assert problem_of(await client.delete(url, headers=alice.headers)) == (404, "POST_NOT_FOUND")
    nobody = await client.get(f"/v1/users/{unique('nobody')}")
    assert problem_of(nobody) == (404, "USER_NOT_FOUND")


async def test_invalid_body_names_every_field_that_is_wrong(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/auth/signup", json={"username": "1x", "email": "nowhere", "password": "short"}
    )

    assert problem_of(response) == (422, "INVALID_FIELDS")
    fields = {violation["field"] for violation in response.json()["violations"]}
    assert fields == {"username", "email", "password"}


async def test_null_and_absent_members_of_a_patch_differ(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    created = await client.post(
        "/v1/posts", json={"title": "Title", "body": "Body"}, headers=alice.headers
    )
    url = f"/v1/posts/{created.json()['id']}"

    emptied = await client.patch(url, json={"body": None}, headers=alice.headers)
    nothing = await client.patch(url, json={}, headers=alice.headers)
    no_title = await client.patch(url, json={"title": None}, headers=alice.headers)

    assert (emptied.json()["title"], emptied.json()["body"]) == ("Title", "")
    assert nothing.json() == emptied.json()
    assert problem_of(no_title) == (422, "TITLE_MISSING")


async def test_repeated_request_with_its_key_has_one_effect_and_the_first_answer(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice, bob = await sign_up(client, unique("alice")), await sign_up(client, unique("bob"))
    key = {"Idempotency-Key": unique("key-")}

    first, second = [
        await client.post("/v1/posts", json={"title": "Once"}, headers=alice.headers | key)
        for _ in range(2)
    ]
    other = await client.post("/v1/posts", json={"title": "Other"}, headers=alice.headers | key)
    bobs = await client.post("/v1/posts", json={"title": "Once"}, headers=bob.headers | key)

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json() == first.json()
    assert problem_of(other) == (422, "OPERATION_ID_REUSED")
    assert bobs.json()["author"]["id"] == bob.id
    listed = await client.get("/v1/posts", params={"authorId": alice.id})
    assert [post["title"] for post in listed.json()["posts"]] == ["Once"]


async def test_repeated_log_in_with_its_key_does_not_give_the_token_again(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    key = {"Idempotency-Key": unique("key-")}
    credentials = {"login": alice.username, "password": PASSWORD}

    first = await client.post("/v1/auth/login", json=credentials, headers=key)
    second = await client.post("/v1/auth/login", json=credentials, headers=key)

    assert first.status_code == 200
    assert problem_of(second) == (409, "ALREADY_DONE")
