"""`just seed`: sample users and posts, created through the public API."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import httpx

from tools.dev.presence import gateway_of_dev
from tools.paths import SECRETS
from tools.secrets import Secrets

_CONTENT = Path(__file__).with_suffix(".toml")


def seed(url: str, secrets: Secrets) -> None:
    """Create the missing sample data; raise httpx.HTTPError if the gateway refuses a request."""
    content = tomllib.loads(_CONTENT.read_text())
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        people = {
            name: _Person(client, name, _password(name, secrets)) for name in content["people"]
        }
        for name, about in content["people"].items():
            if people[name].new:
                people[name].introduce(about)
        for post in content["posts"]:
            _write(people, **post)


def seed_running() -> None:
    """Seed the system of this clone's `just dev`."""
    if (url := gateway_of_dev()) is None:
        raise SystemExit("No gateway runs in this clone: start it with ./just dev, which seeds too")
    seed(url, Secrets.load_or_create(SECRETS))
    print(f"seed: created five users with posts, comments and likes at {url}/v1/posts")


def _password(name: str, secrets: Secrets) -> str:
    """Return a sample user's password: stored for alice and bob, derived for the rest."""
    known = {"alice": secrets.alice_password, "bob": secrets.bob_password}
    return known.get(name) or hashlib.sha256(f"{secrets.alice_password}{name}".encode()).hexdigest()


class _Person:
    """A sample user with an account."""

    def __init__(self, client: httpx.Client, name: str, password: str) -> None:
        self._client = client
        self.name = name
        account = {"username": name, "email": f"{name}@example.com", "password": password}
        response = client.post("/v1/auth/signup", json=account)
        self.new = response.status_code != httpx.codes.CONFLICT
        if self.new:
            response.raise_for_status()
        login = {"login": name, "password": password, "device": "just seed"}
        session = client.post("/v1/auth/login", json=login).raise_for_status().json()
        self._headers = {"Authorization": f"Bearer {session['accessToken']}"}

    def send(self, verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = self._client.request(verb, path, json=body, headers=self._headers)
        return dict(response.raise_for_status().json())

    def introduce(self, about: dict[str, Any]) -> None:
        profile = {"displayName": about["display_name"], "bio": about["bio"]}
        self.send("PATCH", "/v1/me", profile)
        for other in about["follows"]:
            self.send("PUT", f"/v1/users/{other}/follow")

    def titles(self, status: str) -> set[str]:
        page = self.send("GET", f"/v1/posts?author={self.name}&status={status}&pageSize=100")
        return {post["title"] for post in page["posts"]}


def _write(
    people: dict[str, _Person],
    *,
    author: str,
    likes: tuple[str, ...] = (),
    comments: tuple[tuple[str, str], ...] = (),
    status: str = "POST_STATUS_PUBLISHED",
    **post: Any,
) -> None:
    """Create a post with its comments and likes, unless it exists."""
    if post["title"] in people[author].titles(status):
        return
    id_ = people[author].send("POST", "/v1/posts", post | {"status": status})["id"]
    for name in likes:
        people[name].send("PUT", f"/v1/posts/{id_}/like")
    for name, text in comments:
        people[name].send("POST", f"/v1/posts/{id_}/comments", {"body": text})
