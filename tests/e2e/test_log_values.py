"""The error paths of the domain leave no values of users in the logs."""

from collections.abc import Callable

import httpx

from tests.people import PASSWORD, Client, sign_up
from tests.system import System

Unique = Callable[[str], str]


async def test_failed_requests_leave_no_values_in_the_logs(
    client: httpx.AsyncClient, system: System, unique: Unique
) -> None:
    alice, bob = [await sign_up(client, unique(name)) for name in ("alice", "bob")]
    as_alice, as_bob, marker = Client(client, alice), Client(client, bob), unique("marker")
    email = f"{marker}@example.com"
    taken = {"username": marker, "email": f"{bob.username}@example.com", "password": PASSWORD}
    title = {"title": marker, "body": marker, "tags": [marker]}
    post = f"/v1/posts/{(await as_bob.done('POST', '/v1/posts', title))['id']}"
    text = {"body": marker}
    comment = f"/v1/comments/{(await as_bob.done('POST', f'{post}/comments', text))['id']}"

    statuses = [
        (await as_alice.refused(verb, path, body))[0]
        for verb, path, body in (
            ("POST", "/v1/auth/signup", taken),
            ("POST", "/v1/auth/signup", taken | {"username": bob.username, "email": email}),
            ("POST", "/v1/auth/signup", taken | {"password": marker[:8]}),
            ("POST", "/v1/auth/login", {"login": email, "password": marker}),
            ("POST", "/v1/auth/refresh", {"refreshToken": marker}),
            ("POST", "/v1/auth/password", {"currentPassword": marker, "newPassword": marker * 2}),
            ("PATCH", "/v1/me", {"email": f"{bob.username}@example.com"}),
            ("PATCH", "/v1/me", {"imageUrl": marker}),
            ("PATCH", post, title),
            ("DELETE", post, None),
            ("PATCH", comment, text),
            ("DELETE", comment, None),
            ("GET", f"/v1/posts/{marker}-none", None),
            ("GET", f"/v1/users/{marker}", None),
            ("GET", f"/v1/posts?pageToken={marker}", None),
            ("GET", f"/v1/me/export?after={marker}", None),
        )
    ]

    assert 500 not in statuses
    logs = "".join(system.log(name) for name in ("gateway", "users", "posts"))
    assert "security.forbidden" in logs
    for value in (marker, alice.username, bob.username, "example.com", PASSWORD, alice.token):
        assert value not in logs
