"""`just new-service` in a clone of its own, on real servers."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.paths import ROOT, VENV
from tools.uv import uv

pytestmark = pytest.mark.long

Run = Callable[..., str]

RPC = """\
  // Counts words.
  rpc CountWords(CountWordsRequest) returns (CountWordsResponse) {
    option (google.api.http) = {
      post: "/v1/word-counts"
      body: "*"
    };
    option (postbus.options.v1.method) = {access: ACCESS_USER};
  }
"""
MESSAGES = """
// A text.
message CountWordsRequest {
  // The text.
  string text = 1;
}

// Its size.
message CountWordsResponse {
  // How many words it has.
  int32 words = 1;
}
"""
IMPORTS = "    CountWordsRequest,\n    CountWordsResponse,\n"
HANDLER = '''\
    @MessagePattern(PollsServiceBase.count_words)
    async def count_words(
        self, request: CountWordsRequest, _context: Context
    ) -> CountWordsResponse:
        """Count."""
        return CountWordsResponse(words=len(request.text.split()))

'''
TEST = """

async def test_words_are_counted(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    request = {"text": "one two three"}
    call = {"method": f"{SERVICE}.CountWords", "request": request}

    over_rest = await client.post("/v1/word-counts", json=request, headers=alice.headers)
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
        over_socket = await ask(socket, {"id": "2", "call": call})

    assert over_rest.json() == {"words": 3}
    assert over_socket["result"]["response"]["words"] == 3
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone with the present files committed, without environments."""
    target = tmp_path_factory.mktemp("clone")
    known = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(known, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():  # git lists removed files until the commit
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (
        ["git", "init", "--quiet", "-b", "main"],
        ["git", "add", "--all"],
        ["git", *author, "commit", "--quiet", "--no-verify", "--message=All"],
    ):
        subprocess.run(command, cwd=target, check=True)
    return target


@pytest.fixture(scope="module")
def just(clone: Path) -> Run:
    """Return a function that runs a recipe in the clone and returns its output."""
    programs = [str(VENV / "bin"), str(Path(uv()).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(programs)}

    def run(*arguments: str, code: int = 0) -> str:
        completed = subprocess.run(
            [VENV / "bin" / "just", *arguments],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert completed.returncode == code, completed.stdout
        return completed.stdout

    return run


def changes(clone: Path) -> list[str]:
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    completed = subprocess.run(status, cwd=clone, capture_output=True, check=True, text=True)
    return completed.stdout.splitlines()


def edit(file: Path, before: str, added: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, added + before))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["3d"], "'3d' is not a valid name"),
        (["Polls"], "'Polls' is not a valid name"),
        (["class"], "'class' is not a valid name"),
        (["contexts"], "context has a meaning in the code"),
        (["shared"], "The name shared is taken"),
        (["deploy"], "The name deploy is taken"),
        (["json"], "The name json is taken"),
        (["fastapi"], "The name fastapi is taken"),
        (["realtime"], "The name realtime is taken"),
    ],
)
def test_name_that_cannot_be_used_is_refused_in_one_line_and_changes_nothing(
    clone: Path, just: Run, arguments: list[str], reason: str
) -> None:
    just("_setup")
    said = just("new-service", *arguments, code=1)

    assert said.startswith(reason)
    assert said.count("\n") == 1
    assert changes(clone) == []


@pytest.mark.timeout(120)
def test_service_that_fails_midway_leaves_nothing_behind(clone: Path, just: Run) -> None:
    broken = clone / "proto/postbus/posts/v1/posts.proto"
    text = broken.read_text()
    broken.write_text(text.replace("package", "package package", 1))

    said = just("new-service", "polls", code=1)
    left = changes(clone)
    broken.write_text(text)

    assert "nothing is changed" in said
    assert left == [" M proto/postbus/posts/v1/posts.proto"]
    assert changes(clone) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("users", "users can't be removed: it is used by"),
        ("gateway", "There is no service gateway."),
        ("shared", "There is no service shared."),
    ],
)
def test_service_that_is_needed_is_not_removed(
    clone: Path, just: Run, name: str, reason: str
) -> None:
    said = just("remove-service", name, "--yes", code=1)

    assert reason in said
    assert changes(clone) == []


@pytest.mark.timeout(240)
def test_new_services_pass_their_tests_get_an_rpc_and_are_removed(clone: Path, just: Run) -> None:
    just("new-service", "polls")
    just("new-service", "reviews", "--database", "mongo")
    contract = clone / "proto/postbus/polls/v1/polls.proto"
    edit(contract, "  // Returns a poll.\n", RPC)
    contract.write_text(contract.read_text() + MESSAGES)
    handlers = clone / "polls/src/polls/handlers.py"
    edit(handlers, "    @MessagePattern(PollsServiceBase.get_poll)\n", HANDLER)
    edit(handlers, "    CreatePollRequest,\n", IMPORTS)
    test = clone / "tests/polls/test_polls.py"
    test.write_text(test.read_text() + TEST)

    just("gen")
    said = just("test", "-q", "tests/polls", "tests/reviews")
    just("remove-service", "polls", "--yes")
    just("remove-service", "reviews", "--yes")

    assert "13 passed" in said
    assert changes(clone) == []
    assert not (clone / "polls").exists()
