"""The next version of the contracts and services, built in a copy of the tree.

It has one change of each kind: a field in a request and in a message, with a default of the
handler; a value of an enum in a request and in a response; a stricter and a looser rule; an rpc;
an event that another service consumes; and a migration of each database.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from posts.migrations import MIGRATIONS
from shared.data.postgres_readiness import newest_revision
from tools.contracts.generate.__main__ import generate
from tools.paths import ROOT, SERVICES

__all__ = ["OLD_SCHEMA", "build_next_version"]

OLD_SCHEMA: Final = {"posts": str(len(MIGRATIONS)), "users": newest_revision("users:migrations")}
"""The versions of the databases that this version needs."""


@dataclass(frozen=True, slots=True)
class _Edit:
    """`added` before (`after`: behind) the only occurrence of a text in a file."""

    file: str
    text: str
    added: str
    after: bool = False

    def apply(self, tree: Path) -> None:
        file = tree / self.file
        content = file.read_text()
        assert content.count(self.text) == 1, f"{self.file}: {self.text}"
        both = self.text + self.added if self.after else self.added + self.text
        file.write_text(content.replace(self.text, both))


POSTS, NOTIFICATIONS = (
    "proto/postbus/posts/v1/posts.proto",
    "proto/postbus/posts/v1/notifications.proto",
)
USERS, EVENTS = "proto/postbus/users/v1/users.proto", "proto/postbus/users/v1/events.proto"
RPC = """\
  // Pokes a user.
  rpc PokeUser(PokeUserRequest) returns (PokeUserResponse) {
    option (google.api.http) = {post: "/v1/pokes/{username}"};
    option (postbus.options.v1.method) = {access: ACCESS_USER};
  }
"""
MESSAGES = """
// Names a user.
message PokeUserRequest {
  // Username or id.
  string username = 1 [
    (google.api.field_behavior) = REQUIRED,
    (buf.validate.field).string.min_len = 1,
    (buf.validate.field).string.max_len = 40
  ];
}

// The caller's pokes.
message PokeUserResponse {
  // How many users the caller has poked.
  int32 poke_count = 1;
}
"""
EVENT = """
// A user poked a user.
message UserPoked {
  option (postbus.options.v1.event) = {subject: "poke_id"};
  // The poke.
  string poke_id = 1;
  // The user who was poked.
  string user_id = 2;
  // The user who poked.
  string actor_id = 3;
}
"""
HANDLER = '''\
"""The handler of PokeUser."""

from dataclasses import dataclass

from uuid_utils.compat import uuid7

from postbus.users.v1 import PokeUserRequest, PokeUserResponse, UserPoked, UsersServiceBase
from shared.bus import MessagePattern, publish
from shared.context import Context
from users.account_repository import AccountRepository
from users.profiles import Profiles


@dataclass(frozen=True, slots=True, kw_only=True)
class PokeHandlers:
    accounts: AccountRepository
    profiles: Profiles

    @MessagePattern(UsersServiceBase.poke_user)
    async def poke_user(self, request: PokeUserRequest, context: Context) -> PokeUserResponse:
        caller = await self.accounts.get_caller(context, lock=True)
        user = await self.profiles.find(request.username)
        await self.accounts.update(caller, {"poke_count": caller.poke_count + 1})
        poke = UserPoked(poke_id=str(uuid7()), user_id=user.id, actor_id=caller.id)
        await publish(poke)
        return PokeUserResponse(poke_count=caller.poke_count)
'''
CONSUMER = '''\
"""The consumer of UserPoked."""

from dataclasses import dataclass

from postbus.posts.v1 import NotificationKind
from postbus.users.v1 import UserPoked
from posts.notification_handlers import Notifier
from shared.bus import EventPattern
from shared.context import Context


@dataclass(frozen=True, slots=True)
class PokeConsumer:
    notifier: Notifier

    @EventPattern(UserPoked)
    async def user_poked(self, event: UserPoked, _context: Context) -> None:
        await self.notifier.notify(NotificationKind.POKE, event.user_id, event.actor_id)
'''
REVISION = f"{int(OLD_SCHEMA['users']) + 1:04}"
POSTGRES_MIGRATION = f'''\
"""Pokes."""

import sqlalchemy as sa
from alembic import op

revision = "{REVISION}"
down_revision = "{OLD_SCHEMA["users"]}"


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("poke_count", sa.Integer, nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("users", "poke_count")
'''
MONGO_MIGRATION = """

async def _up_to_subtitles(database: Database) -> None:
    await database["posts"].update_many(
        {"subtitle": {"$exists": False}}, {"$set": {"subtitle": "none"}}
    )


async def _down_from_subtitles(database: Database) -> None:
    await database["posts"].update_many({}, {"$unset": {"subtitle": ""}})


MIGRATIONS = (*MIGRATIONS, Migration(up=_up_to_subtitles, down=_down_from_subtitles))
"""
NEW_FILES: Final = {
    "users/src/users/poke_handlers.py": HANDLER,
    "posts/src/posts/poke_consumer.py": CONSUMER,
    f"users/src/users/migrations/versions/{REVISION}_pokes.py": POSTGRES_MIGRATION,
}
APPENDED: Final = {
    USERS: MESSAGES,
    EVENTS: EVENT,
    "posts/src/posts/migrations.py": MONGO_MIGRATION,
}
EDITS: Final = (
    _Edit(USERS, "  // Follows a user, whose posts", RPC),
    _Edit(
        POSTS,
        "  bool liked = 15 [(google.api.field_behavior) = OUTPUT_ONLY];\n",
        "  // The subtitle.\n  string subtitle = 16;\n",
        after=True,
    ),
    _Edit(
        POSTS,
        "  // The visibility of the post; published if unset.\n",
        "  // The subtitle; `untitled` if unset.\n"
        "  string subtitle = 6 [(buf.validate.field).string.max_len = 100];\n",
    ),
    _Edit(POSTS, "  POST_ORDER_OLDEST = 2;\n", "  // By title.\n  POST_ORDER_TITLE = 3;\n", True),
    _Edit(
        NOTIFICATIONS,
        "  NOTIFICATION_KIND_MENTION = 4;\n",
        "  // An actor poked the user.\n  NOTIFICATION_KIND_POKE = 5;\n",
        after=True,
    ),
    _Edit(
        "users/src/users/__main__.py",
        "from users.profiles import",
        "from users.poke_handlers import PokeHandlers\n",
    ),
    _Edit(
        "users/src/users/__main__.py",
        "        SigningKeyHandlers(",
        "        PokeHandlers(accounts=accounts, profiles=profiles),\n",
    ),
    _Edit(
        "users/src/users/models.py",
        "    follower_count: int = 0\n",
        '    poke_count: int = Field(default=0, sa_column_kwargs={"server_default": "0"})\n',
    ),
    _Edit(
        "posts/src/posts/__main__.py",
        "from posts.post_handlers",
        "from posts.poke_consumer import PokeConsumer\n",
    ),
    _Edit(
        "posts/src/posts/__main__.py",
        "        FollowHandlers(",
        "        PokeConsumer(notifier),\n",
    ),
    _Edit("posts/src/posts/models.py", '    body: str = ""\n', '    subtitle: str = ""\n'),
    _Edit(
        "posts/src/posts/post_handlers.py",
        "        body=request.body,\n",
        '        subtitle=request.subtitle or "untitled",\n',
    ),
    _Edit(
        "posts/src/posts/presenter.py",
        "        body=post.body,\n",
        "        subtitle=post.subtitle,\n",
    ),
)
RULES: Final = {  # the bounds of CreatePostRequest: one stricter, one looser
    "string summary = 3 [\n    (buf.validate.field).string.max_len = 500": "400",
    "string title = 1 [\n    (google.api.field_behavior) = REQUIRED,\n"
    "    (buf.validate.field).string.min_len = 1,\n"
    "    (buf.validate.field).string.max_len = 200": "300",
}


def build_next_version(tree: Path) -> Mapping[str, Mapping[str, str]]:
    """Build the next version in an empty folder; return the settings that run each service from it.

    A process uses the environment of this version, with the contracts and its package from `tree`.
    """
    shutil.copy(ROOT / "buf.yaml", tree)
    for folder in ("proto", "gen", *(f"{service}/src" for service in SERVICES)):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for edit in EDITS:
        edit.apply(tree)
    for name, text in NEW_FILES.items():
        (tree / name).write_text(text)
    for name, text in APPENDED.items():
        with (tree / name).open("a") as file:
            file.write(text)
    _change_rules(tree / POSTS)
    shutil.rmtree(tree / "gen/postbus")
    generate(tree, tree / "gen/postbus")
    return {
        service: {"PYTHONPATH": f"{tree / 'gen'}{os.pathsep}{tree / service / 'src'}"}
        for service in SERVICES
    }


def _change_rules(contract: Path) -> None:
    text = contract.read_text()
    for rule, bound in RULES.items():
        assert text.count(rule) == 1
        text = text.replace(rule, rule.rpartition(" ")[0] + f" {bound}")
    contract.write_text(text)
