"""Every changing rpc has one effect, however often a client repeats it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from postbus.registry import METHODS, Access
from tests.people import PASSWORD, Person, sign_up

Unique = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A request and its expected response; `other` is another body for its key."""

    verb: str
    path: str
    status: int = 200
    body: dict[str, Any] | None = None
    other: dict[str, Any] | None = None
    token: str = ""

    async def send(
        self, client: httpx.AsyncClient, key: str, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        headers = {"Idempotency-Key": key}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return await client.request(self.verb, self.path, json=body or self.body, headers=headers)


async def log_in(client: httpx.AsyncClient, person: Person) -> dict[str, Any]:
    body = {"login": person.username, "password": PASSWORD}
    return dict((await client.post("/v1/auth/login", json=body)).raise_for_status().json())


async def post(client: httpx.AsyncClient, person: Person, **fields: Any) -> str:
    body = {"title": "A post", **fields}
    response = await client.post("/v1/posts", json=body, headers=person.headers)
    return str(response.raise_for_status().json()["id"])


async def comment(client: httpx.AsyncClient, person: Person, post_id: str) -> str:
    path, body = f"/v1/posts/{post_id}/comments", {"body": "First"}
    response = await client.post(path, json=body, headers=person.headers)
    return str(response.raise_for_status().json()["id"])


async def change_of(method: str, client: httpx.AsyncClient, unique: Unique) -> Change:
    """Create the resources that the method needs, and return a call."""
    ann, bea = await sign_up(client, unique("ann")), await sign_up(client, unique("bea"))
    name, token = unique("new"), ann.token
    account = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    like, follow = f"/v1/posts/{await post(client, bea)}/like", f"/v1/users/{bea.username}/follow"
    commented = f"/v1/posts/{await post(client, bea)}/comments"
    match method.removeprefix("postbus."):
        case "users.v1.AuthService.SignUp":
            other = account | {"password": "another password"}
            return Change(
                verb="POST", path="/v1/auth/signup", status=201, body=account, other=other
            )
        case "users.v1.AuthService.LogIn":
            login = {"login": ann.username, "password": PASSWORD}
            other = login | {"device": "another"}
            return Change(verb="POST", path="/v1/auth/login", body=login, other=other)
        case "users.v1.AuthService.RefreshSession":
            refresh = {"refreshToken": (await log_in(client, ann))["refreshToken"]}
            other = {"refreshToken": (await log_in(client, ann))["refreshToken"]}
            return Change(verb="POST", path="/v1/auth/refresh", body=refresh, other=other)
        case "users.v1.AuthService.LogOut":
            return Change(verb="POST", path="/v1/auth/logout", status=204, token=token)
        case "users.v1.AuthService.LogOutEverywhere":
            return Change(verb="POST", path="/v1/auth/logout-everywhere", status=204, token=token)
        case "users.v1.AuthService.RevokeSession":
            session = (await log_in(client, ann))["sessionId"]
            path = f"/v1/auth/sessions/{session}"
            return Change(verb="DELETE", path=path, status=204, token=token)
        case "users.v1.AuthService.ChangePassword":
            body = {"currentPassword": PASSWORD, "newPassword": "another password"}
            other = body | {"newPassword": "one more password"}
            path = "/v1/auth/password"
            return Change(verb="POST", path=path, status=204, body=body, other=other, token=token)
        case "users.v1.UsersService.UpdateMe":
            return Change(
                verb="PATCH",
                path="/v1/me",
                body={"bio": "New"},
                other={"bio": "Other"},
                token=token,
            )
        case "users.v1.UsersService.DeleteMe":
            return Change(verb="DELETE", path="/v1/me", status=204, token=token)
        case "users.v1.UsersService.Follow":
            return Change(verb="PUT", path=follow, token=token)
        case "users.v1.UsersService.Unfollow":
            (await client.put(follow, headers=ann.headers)).raise_for_status()
            return Change(verb="DELETE", path=follow, token=token)
        case "posts.v1.PostsService.CreatePost":
            body, other = {"title": "Once"}, {"title": "Twice"}
            return Change(
                verb="POST", path="/v1/posts", status=201, body=body, other=other, token=token
            )
        case "posts.v1.PostsService.UpdatePost":
            path = f"/v1/posts/{await post(client, ann)}"
            body, other = {"title": "Once"}, {"title": "Twice"}
            return Change(verb="PATCH", path=path, body=body, other=other, token=token)
        case "posts.v1.PostsService.DeletePost":
            path = f"/v1/posts/{await post(client, ann)}"
            return Change(verb="DELETE", path=path, status=204, token=token)
        case "posts.v1.PostsService.PublishPost":
            path = f"/v1/posts/{await post(client, ann, status='POST_STATUS_DRAFT')}:publish"
            return Change(verb="POST", path=path, token=token)
        case "posts.v1.PostsService.UnpublishPost":
            path = f"/v1/posts/{await post(client, ann)}:unpublish"
            return Change(verb="POST", path=path, token=token)
        case "posts.v1.PostsService.LikePost":
            return Change(verb="PUT", path=like, token=token)
        case "posts.v1.PostsService.UnlikePost":
            (await client.put(like, headers=ann.headers)).raise_for_status()
            return Change(verb="DELETE", path=like, token=token)
        case "posts.v1.CommentsService.CreateComment":
            body, other = {"body": "Once"}, {"body": "Twice"}
            return Change(
                verb="POST", path=commented, status=201, body=body, other=other, token=token
            )
        case "posts.v1.CommentsService.UpdateComment":
            path = f"/v1/comments/{await comment(client, ann, await post(client, bea))}"
            body, other = {"body": "Once"}, {"body": "Twice"}
            return Change(verb="PATCH", path=path, body=body, other=other, token=token)
        case "posts.v1.CommentsService.DeleteComment":
            path = f"/v1/comments/{await comment(client, ann, await post(client, bea))}"
            return Change(verb="DELETE", path=path, status=204, token=token)
        case "posts.v1.NotificationsService.MarkRead":
            some: dict[str, Any] = {"ids": ["018f3f6e-0000-7000-8000-000000000001"]}
            path = "/v1/notifications:markRead"
            return Change(verb="POST", path=path, body={"ids": []}, other=some, token=token)
    raise AssertionError(f"say here how {method} is called")


CHANGING = [
    method
    for method in METHODS.values()
    if method.http and method.access is not Access.INTERNAL and method.has_side_effects
]


@pytest.mark.parametrize("method", CHANGING, ids=lambda method: method.name)
async def test_repeated_change_has_one_effect_and_one_answer(
    method: Any, client: httpx.AsyncClient, unique: Unique
) -> None:
    change, key = await change_of(method.name, client, unique), unique("key")

    first = await change.send(client, key)
    again = await change.send(client, key)

    assert first.status_code == change.status, first.text
    assert "Idempotency-Replayed" not in first.headers
    if method.name.endswith(
        ".LogIn"
    ):  # its answer is not stored; the answer of a refresh is, for a minute
        assert (again.status_code, again.json()["reason"]) == (409, "ALREADY_DONE")
    else:
        assert (again.status_code, again.content) == (change.status, first.content), again.text
        assert again.headers["Idempotency-Replayed"] == "true"
    if change.other is not None and not change.token:
        other = await change.send(client, key, change.other)
        assert (other.status_code, other.json().get("reason")) in (
            (change.status, None),
            (409, "USERNAME_TAKEN"),
        )  # two callers without tokens may use the same key
    elif change.other is not None:
        reused = await change.send(client, key, change.other)
        assert (reused.status_code, reused.json()["reason"]) == (422, "OPERATION_ID_REUSED")


@pytest.mark.parametrize("method", CHANGING, ids=lambda method: method.name)
async def test_duplicates_at_the_same_moment_have_one_effect_and_one_answer(
    method: Any, client: httpx.AsyncClient, unique: Unique
) -> None:
    change, key = await change_of(method.name, client, unique), unique("key")

    responses = await asyncio.gather(*(change.send(client, key) for _ in range(5)))

    done = [response for response in responses if response.status_code == change.status]
    refused = {
        (response.status_code, response.json()["reason"])
        for response in responses
        if response not in done
    }
    assert done, [response.text for response in responses]
    assert len({response.content for response in done}) == 1
    assert refused <= {(409, "OPERATION_RUNNING"), (409, "ALREADY_DONE")}
    fresh = [response for response in done if "Idempotency-Replayed" not in response.headers]
    assert len(fresh) == 1
