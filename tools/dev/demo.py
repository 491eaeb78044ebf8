"""`just demo`: a scripted session with the real system."""

import json
import os
import secrets as random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tools.dev.environment import service_environments
from tools.dev.presence import gateway_of_dev
from tools.dev.readiness import wait_until_ready
from tools.migrate import migrate
from tools.paths import LOGS, ROOT, SECRETS, python_of
from tools.secrets import Secrets
from tools.servers import servers
from tools.servers.guardian import end_with_this_process
from tools.servers.ports import free_port

_READY_SECONDS = 60
_RESPONSE_SECONDS = 10


def demo() -> int:
    """Run the demo. Return 0 if every step succeeded; raise AssertionError otherwise."""
    with _gateway() as url:
        _run_steps(url)
    print("demo: ok")
    return 0


def _run_steps(url: str) -> None:
    names = [f"{name}_{random.token_hex(4)}" for name in ("ada", "mary")]
    with ExitStack() as stack:
        ada, mary = (
            stack.enter_context(
                httpx.Client(base_url=url, timeout=_RESPONSE_SECONDS, trust_env=False)
            )
            for _ in names
        )
        user = _sign_up(ada, names[0])
        token = _log_in(ada, names[0])
        _sign_up(mary, names[1])
        _log_in(mary, names[1])
        post = _create_post(ada, user)
        _read_post(ada, post)
        _follow_and_read_feed(mary, post)
        socket_url = f"{url.replace('http', 'ws', 1)}/ws"
        socket = stack.enter_context(
            connect(socket_url, proxy=None, open_timeout=_RESPONSE_SECONDS)
        )
        _subscribe(socket, token)
        _call_and_see_event(socket)
        _like_and_notify(mary, post, socket)


def _sign_up(rest: httpx.Client, name: str) -> dict[str, Any]:
    account = {"username": name, "email": f"{name}@example.com", "password": _password(name)}
    user = _response(rest.post("/v1/auth/signup", json=account), 201)
    _step("sign up", "POST /v1/auth/signup", f"user {user['id']}, {name}")
    return user


def _log_in(rest: httpx.Client, name: str) -> str:
    body = {"login": name, "password": _password(name)}
    session = _response(rest.post("/v1/auth/login", json=body), 200)
    rest.headers["Authorization"] = f"Bearer {session['accessToken']}"
    _step("log in", "POST /v1/auth/login", f"token until {session['expiresAt']}")
    return str(session["accessToken"])


def _create_post(rest: httpx.Client, user: dict[str, Any]) -> dict[str, Any]:
    body = {
        "title": "Notes on the engine",
        "body": "It weaves algebraic patterns.",
        "tags": ["engines"],
    }
    post = _response(rest.post("/v1/posts", json=body), 201)
    _expect(post["author"]["id"] == user["id"], post)
    _step("create a post", "POST /v1/posts", f"post {post['id']}")
    return post


def _read_post(rest: httpx.Client, post: dict[str, Any]) -> None:
    found = _response(rest.get(f"/v1/posts/{post['id']}"), 200)
    _expect(found == post, found)
    _step("read it", "GET /v1/posts/{id}", f"“{found['title']}” by {found['author']['username']}")


def _follow_and_read_feed(rest: httpx.Client, post: dict[str, Any]) -> None:
    author = post["author"]["username"]
    profile = _response(rest.put(f"/v1/users/{author}/follow"), 200)
    _expect(profile["followed"], profile)
    feed = _response(rest.get("/v1/feed"), 200)["posts"]
    _expect([each["id"] for each in feed] == [post["id"]], feed)
    _step("follow, read feed", "PUT .../follow, /v1/feed", f"“{feed[0]['title']}”")


def _like_and_notify(rest: httpx.Client, post: dict[str, Any], socket: ClientConnection) -> None:
    liked = _response(rest.put(f"/v1/posts/{post['id']}/like"), 200)
    _expect((liked["liked"], liked["likeCount"]) == (True, 1), liked)
    kinds: set[str] = set()
    while "NOTIFICATION_KIND_LIKE" not in kinds:  # the notification of the follow may arrive first
        event = _receive(socket).get("event", {})
        kinds.add(event.get("data", {}).get("notification", {}).get("kind", ""))
    _step("like, get notified", "PUT .../like, /ws", "NotificationCreated, only to the author")


def _subscribe(socket: ClientConnection, token: str) -> None:
    reply = _request(socket, {"id": "1", "authenticate": {"accessToken": token}})
    _expect("authenticated" in reply, reply)
    types = ["postbus.posts.v1.PostCreated", "postbus.posts.v1.NotificationCreated"]
    _expect(
        "subscribed" in _request(socket, {"id": "2", "subscribe": {"types": types}}), "subscribed"
    )
    _step("subscribe", "WebSocket /ws", "subscribed to PostCreated and NotificationCreated")


def _call_and_see_event(socket: ClientConnection) -> None:
    request = {"title": "The same rpc, over the WebSocket"}
    call = {"method": "postbus.posts.v1.PostsService.CreatePost", "request": request}
    socket.send(json.dumps({"id": "3", "call": call}))
    post, events = None, {}
    while post is None or post["id"] not in events:  # in any order, among events of other users
        match _receive(socket):
            case {"result": {"response": {"post": post}}}:
                _step("call the same rpc", "WebSocket /ws", f"post {post['id']}")
            case {"event": event}:
                events[event["subject"]] = event
            case frame:
                _expect(False, frame)
    event = events[post["id"]]
    _expect(event["data"]["post"] == post, event)
    _step("see the event", "WebSocket /ws", f"PostCreated {event['eventId']}")


def _password(name: str) -> str:
    return f"{name} has a long password"


def _request(socket: ClientConnection, frame: dict[str, Any]) -> dict[str, Any]:
    socket.send(json.dumps(frame))
    return _receive(socket)


def _receive(socket: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(socket.recv(timeout=_RESPONSE_SECONDS)))


def _response(response: httpx.Response, status: int) -> dict[str, Any]:
    _expect(response.status_code == status, response.text)
    return dict(response.json())


def _expect(holds: bool, seen: object) -> None:
    if not holds:
        raise SystemExit(f"demo: failed, unexpected: {seen}")


def _step(what: str, how: str, outcome: str) -> None:
    print(f"demo: {what:<21} {how:<24} {outcome}", flush=True)


@contextmanager
def _gateway() -> Iterator[str]:
    """Yield the gateway's URL: of this clone's `just dev`, or of a system for the demo."""
    if url := gateway_of_dev():
        print(f"demo: using the system of just dev at {url}")
        yield url
        return
    with ExitStack() as stack:
        addresses = stack.enter_context(servers("demo", prepare=migrate))
        secrets = Secrets.load_or_create(SECRETS)
        port = free_port()
        environments = service_environments(addresses, secrets, port=port)
        for service, environment in environments.items():
            stack.enter_context(_running(service, environment))
        url = f"http://127.0.0.1:{port}"
        print(f"demo: starting {', '.join(environments)} at {url}", flush=True)
        if missing := wait_until_ready(url, _READY_SECONDS):
            raise SystemExit(f"demo: not ready, see logs/: {missing}")
        yield url


@contextmanager
def _running(service: str, environment: dict[str, str]) -> Iterator[None]:
    LOGS.mkdir(exist_ok=True)
    with (LOGS / f"{service}.log").open("ab") as log:
        process = subprocess.Popen(
            [python_of(service), "-m", service],
            env=os.environ | environment,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        end_with_this_process(process.pid)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
