"""`just seed`: people and posts worth looking at, made through the public API like anyone's."""

import httpx

from tools.paths import DEV
from tools.presence import gateway_of_dev
from tools.secrets import Secrets

_POSTS = {
    "alice": [
        (
            "Why we write the contract first",
            "A message that two teams read differently is two messages. So the .proto file comes"
            " first, and both sides are generated from it.",
        ),
        (
            "Three things a retry must know",
            "Whether the first attempt arrived, whether it had an effect, and whether the second"
            " one may have it again. An idempotency key answers all three.",
        ),
    ],
    "bob": [
        (
            "Reading a dead letter queue",
            "Start with the oldest message, not the newest: it is the one that was there before"
            " everything else went wrong.",
        ),
    ],
}


def seed(url: str, secrets: Secrets) -> None:
    """Makes what is missing of it; raises httpx.HTTPError if the gateway refuses."""
    passwords = {"alice": secrets.alice_password, "bob": secrets.bob_password}
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        present = _titles(client)
        for name, posts in _POSTS.items():
            missing = [(title, body) for title, body in posts if title not in present]
            token = _log_in(client, name, passwords[name]) if missing else ""
            for title, body in missing:
                _post(client, "/v1/posts", {"title": title, "body": body}, token)


def seed_running() -> None:
    """The recipe: seeds the system that `just dev` runs in this clone."""
    if (url := gateway_of_dev()) is None:
        raise SystemExit("No gateway runs in this clone: start it with ./just dev, which seeds too")
    seed(url, Secrets.load_or_create(DEV / "secrets.env"))
    print(f"seed: alice and bob and their posts are at {url}/v1")


def _titles(client: httpx.Client) -> set[str]:
    answer = client.get("/v1/posts", params={"pageSize": 100}).raise_for_status()
    return {post["title"] for post in answer.json().get("posts", [])}


def _log_in(client: httpx.Client, name: str, password: str) -> str:
    """Signs the user up unless that has been done, and returns an access token."""
    account = {"username": name, "email": f"{name}@example.com", "password": password}
    answer = client.post("/v1/auth/signup", json=account)
    if answer.status_code != httpx.codes.CONFLICT:
        answer.raise_for_status()
    return str(
        _post(client, "/v1/auth/login", {"login": name, "password": password})["accessToken"]
    )


def _post(
    client: httpx.Client, path: str, body: dict[str, str], token: str = ""
) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = client.post(path, json=body, headers=headers).raise_for_status()
    return dict(answer.json())
