"""Log-in and sign-up under attack: floods, guesses and their effect on other users."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress

import pytest
import structlog.testing
from argon2 import PasswordHasher

from postbus.users.v1 import (
    ChangePasswordRequest,
    DeleteMeRequest,
    SignUpRequest,
    SignUpResponse,
    UpdateMeRequest,
)
from shared.errors import ServiceError
from tests.people import PASSWORD
from tests.users.conftest import AUTH, Worker, reason
from users.credential_rules import require_uncommon
from users.passwords import Passwords, Purpose

Unique = Callable[[str], str]
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def here() -> str:
    """Return an address that no other test uses."""
    return f"2001:db8:{time.monotonic_ns() & 0xFFFF:x}:{time.monotonic_ns() >> 16 & 0xFFFF:x}::1"


async def lock_out(worker: Worker, login: str, address: str = "", device_token: str = "") -> None:
    """Fail until log-ins are throttled."""
    for _ in range(5):
        failed = worker.log_in(login, "wrong", address=address, device_token=device_token)
        assert await reason(failed) == "WRONG_CREDENTIALS"
    waits = worker.log_in(login, "wrong", address=address, device_token=device_token)
    assert await reason(waits) == "LOGIN_THROTTLED"


@pytest.mark.parametrize("name", ["taken", "new"])
async def test_flood_of_sign_ups_leaves_log_ins_working(
    name: str, worker: Worker, unique: Unique
) -> None:
    alice, taken = unique("alice"), unique("taken")
    for each in (alice, taken):
        await worker.sign_up(each)
    kinds: set[str] = set()

    async def flood() -> None:
        while True:
            kinds.add(await reason(worker.sign_up(taken if name == "taken" else unique("new"))))

    flooding = [asyncio.create_task(flood()) for _ in range(48)]
    try:
        for _ in range(6):
            async with asyncio.timeout(20):
                await worker.log_in(alice)
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)

    allowed = {"USERNAME_TAKEN", "PASSWORDS_BUSY"} if name == "taken" else {"", "PASSWORDS_BUSY"}
    assert kinds <= allowed
    assert kinds


async def test_taken_name_costs_no_hash_and_taken_address_costs_one(
    worker: Worker, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, hashed = unique("alice"), []
    await worker.sign_up(alice)
    real = PasswordHasher.hash

    def counted(self: PasswordHasher, password: str | bytes) -> str:
        hashed.append(password)
        return real(self, password)

    monkeypatch.setattr(PasswordHasher, "hash", counted)
    taken_name = await reason(worker.sign_up(alice.upper(), email="other@example.com"))
    hashes = [len(hashed)]
    taken_address = await reason(worker.sign_up(unique("other"), email=f"{alice}@EXAMPLE.com"))
    hashes.append(len(hashed))
    await worker.sign_up(unique("free"))
    hashes.append(len(hashed))

    assert (taken_name, taken_address) == ("USERNAME_TAKEN", "EMAIL_TAKEN")
    assert hashes == [0, 1, 2]


async def test_unknown_name_costs_one_verification_like_a_wrong_password(
    worker: Worker, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, verified = unique("alice"), []
    await worker.sign_up(alice)
    real = PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str | bytes, password: str | bytes) -> bool:  # noqa: A002
        verified.append(hash)
        return bool(real(self, hash, password))

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    for login in (alice, unique("nobody")):
        assert await reason(worker.log_in(login, "wrong")) == "WRONG_CREDENTIALS"

    parameters = {str(each).rpartition("$")[0].rpartition("$")[0] for each in verified}
    assert len(verified) == 2
    assert len(parameters) == 1


async def test_repeated_sign_up_with_its_key_gets_the_stored_response(
    worker: Worker, unique: Unique
) -> None:
    name, key = unique("alice"), unique("key")
    request = SignUpRequest(username=name, email=f"{name}@example.com", password=PASSWORD)

    responses = [await worker.call(f"{AUTH}.SignUp", request, operation_id=key) for _ in range(2)]

    assert responses[0].user.id == responses[1].user.id


async def test_callers_without_a_token_can_use_the_same_key(worker: Worker, unique: Unique) -> None:
    key = unique("key")

    async def sign_up(name: str) -> SignUpResponse:
        request = SignUpRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
        response: SignUpResponse = await worker.call(f"{AUTH}.SignUp", request, operation_id=key)
        return response

    names = [unique("ann"), unique("bob")]
    accounts = [(await sign_up(name)).user for name in names]
    again = (await sign_up(names[0])).user

    assert [account.username for account in accounts] == names
    assert again.id == accounts[0].id


@pytest.mark.parametrize(
    ("purpose", "size"),
    [(Purpose.LOG_IN, 32), (Purpose.PASSWORD_CHANGE, 8), (Purpose.SIGN_UP, 8)],
)
async def test_each_purpose_has_a_queue_of_its_own(purpose: Purpose, size: int) -> None:
    with closing(Passwords()) as passwords:
        slots = [passwords.acquire_slot(purpose) for _ in range(size)]
        for slot in slots:
            slot.__enter__()

        with pytest.raises(ServiceError, match="PASSWORDS_BUSY") as raised:
            passwords.acquire_slot(purpose).__enter__()
        for another in set(Purpose) - {purpose}:
            with passwords.acquire_slot(another):
                pass
        for slot in slots:
            slot.__exit__(None, None, None)
        with passwords.acquire_slot(purpose):
            pass

    assert raised.value.retry_after == 1


def places(passwords: Passwords) -> int:
    """Return the number of log-ins that may hash or wait at the same time."""
    acquired = 0
    with ExitStack() as slots, suppress(ServiceError):
        while acquired < 100:
            slots.enter_context(passwords.acquire_slot(Purpose.LOG_IN))
            acquired += 1
    return acquired


async def test_slow_hashes_leave_fewer_places_until_they_are_fast_again() -> None:
    with closing(Passwords()) as passwords:
        before = places(passwords)
        await passwords._run(Purpose.LOG_IN, lambda: time.sleep(1))
        slow = places(passwords)
        for _ in range(60):
            await passwords._run(Purpose.LOG_IN, lambda: None)

        assert before == places(passwords) == 32
        assert 1 <= slow <= 15


def test_very_slow_hashes_leave_one_place() -> None:
    with closing(Passwords()) as passwords:
        passwords._seconds = 60.0

        assert places(passwords) == 1


async def test_log_ins_have_priority_and_other_purposes_are_not_starved() -> None:
    done: list[Purpose] = []
    with closing(Passwords()) as passwords:
        passwords._free_threads = 1  # one thread, so that the hashes end in the order of the queue

        async def hash_for(purpose: Purpose) -> None:
            await passwords.hash(purpose, "a password")
            done.append(purpose)

        busy = asyncio.create_task(passwords.hash(Purpose.SIGN_UP, "x"))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(hash_for(Purpose.SIGN_UP)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting += [asyncio.create_task(hash_for(Purpose.LOG_IN)) for _ in range(8)]
        await asyncio.gather(busy, *waiting)

    turns = [*[Purpose.LOG_IN] * 3, Purpose.SIGN_UP]
    assert done == [*turns, *turns, *[Purpose.LOG_IN] * 2]


async def test_hash_of_a_cancelled_call_keeps_its_thread() -> None:
    with closing(Passwords()) as passwords:
        threads = passwords._free_threads
        for _ in range(20):
            gone = asyncio.create_task(passwords.hash(Purpose.LOG_IN, "a password"))
            await asyncio.sleep(0.001)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert (
                passwords._threads._work_queue.qsize() <= threads
            )  # a thread takes it immediately
        async with asyncio.timeout(5):
            await passwords.hash(Purpose.LOG_IN, "a password")
            while passwords._free_threads != threads:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.001)


async def test_stranger_does_not_lock_the_owner_out(
    worker: Worker, unique: Unique, here: str
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    device = (await worker.log_in(alice, address=here)).device_token

    await lock_out(worker, alice, here)

    assert await reason(worker.log_in(alice, address=here)) == "LOGIN_THROTTLED"
    assert (await worker.log_in(alice, address=here, device_token=device)).device_token == device
    assert await reason(worker.log_in(alice, address=ELSEWHERE)) == ""


async def test_known_device_has_a_count_of_its_own(
    worker: Worker, unique: Unique, here: str
) -> None:
    alice, bob = unique("alice"), unique("bob")
    for name in (alice, bob):
        await worker.sign_up(name)
    device, other = [(await worker.log_in(alice)).device_token for _ in range(2)]
    bobs = (await worker.log_in(bob)).device_token

    await lock_out(worker, alice, here, device)

    assert await reason(worker.log_in(alice, address=here)) == ""
    assert (await worker.log_in(alice, device_token=other)).device_token == other
    await lock_out(worker, alice, here)
    for useless in (bobs, other[:-8] + "AAAAAAA=", "x", "é", "A" * 64):
        throttled = worker.log_in(alice, address=here, device_token=useless)
        assert await reason(throttled) == "LOGIN_THROTTLED", useless


async def test_new_password_revokes_device_tokens(
    worker: Worker, unique: Unique, here: str
) -> None:
    alice, new = unique("alice"), "another long password"
    await worker.sign_up(alice)
    session = await worker.log_in(alice)
    change = ChangePasswordRequest(current_password=PASSWORD, new_password=new)

    await worker.call(f"{AUTH}.ChangePassword", change, access_token=session.access_token)
    await lock_out(worker, alice, here)

    old = worker.log_in(alice, new, address=here, device_token=session.device_token)
    assert await reason(old) == "LOGIN_THROTTLED"


async def test_one_of_two_concurrent_password_changes_succeeds(
    worker: Worker, unique: Unique
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    token = (await worker.log_in(alice)).access_token

    def change(password: str) -> Awaitable[str]:
        request = ChangePasswordRequest(current_password=PASSWORD, new_password=password)
        return reason(worker.call(f"{AUTH}.ChangePassword", request, access_token=token))

    reasons = await asyncio.gather(change("a first new one"), change("a second new one"))

    assert sorted(reasons) == ["", "WRONG_PASSWORD"]


async def test_wrong_current_passwords_delay_password_changes_but_not_log_ins(
    worker: Worker, unique: Unique
) -> None:
    alice, right = unique("alice"), PASSWORD
    await worker.sign_up(alice)
    token = (await worker.log_in(alice)).access_token

    async def change(current: str) -> str:
        request = ChangePasswordRequest(
            current_password=current, new_password="x" * 3 + unique("p")
        )
        return await reason(worker.call(f"{AUTH}.ChangePassword", request, access_token=token))

    assert [await change("wrong") for _ in range(5)] == ["WRONG_PASSWORD"] * 5
    assert await change(right) == "LOGIN_THROTTLED"
    assert await reason(worker.log_in(alice)) == ""


@pytest.mark.parametrize("known", [True, False])
async def test_failures_of_a_name_are_counted_per_address(
    known: bool, worker: Worker, unique: Unique, here: str
) -> None:
    name = unique("name")
    if known:
        await worker.sign_up(name)

    await lock_out(worker, name, here)

    assert await reason(worker.log_in(name.upper(), "wrong", address=here)) == "LOGIN_THROTTLED"
    elsewhere = worker.log_in(name, "wrong", address=ELSEWHERE)
    assert await reason(elsewhere) == "WRONG_CREDENTIALS"


async def test_username_and_email_address_of_an_account_count_together(
    worker: Worker, unique: Unique, here: str
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)

    await lock_out(worker, alice, here)

    by_email = worker.log_in(f"{alice}@example.com", address=here)
    assert await reason(by_email) == "LOGIN_THROTTLED"


async def test_guesses_from_many_addresses_are_limited_for_each_account(
    worker: Worker, unique: Unique
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    device = (await worker.log_in(alice)).device_token
    await worker.database.execute("UPDATE login_failures SET count = 99 WHERE count = 0")

    async def guess(number: int) -> str:
        return await reason(worker.log_in(alice, "wrong", address=f"203.0.113.{number}"))

    assert await guess(1) == "WRONG_CREDENTIALS"
    assert await guess(2) == "LOGIN_THROTTLED"
    assert (await worker.log_in(alice, device_token=device)).session_id


@pytest.mark.parametrize("settings", [{"login_failures_per_address": 5}], indirect=True)
async def test_password_spraying_from_one_network_is_throttled(
    worker: Worker, unique: Unique, here: str
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    device = (await worker.log_in(alice)).device_token
    network = here.removesuffix("1")
    tried = [
        await reason(worker.log_in(unique("name"), "wrong", address=f"{network}{number}"))
        for number in range(6)
    ]

    with pytest.raises(ServiceError) as raised:
        await worker.log_in(unique("name"), "wrong", address=f"{network}ffff")

    assert tried[:5] == ["WRONG_CREDENTIALS"] * 5
    assert (tried[5], raised.value.reason) == ("LOGIN_THROTTLED", "LOGIN_THROTTLED")
    assert raised.value.retry_after is not None
    assert 0 < raised.value.retry_after <= 12
    assert await reason(worker.log_in(alice, address=here)) == "LOGIN_THROTTLED"
    assert await reason(worker.log_in(alice, address=here, device_token=device)) == ""


async def test_log_in_replaces_a_hash_with_older_parameters(worker: Worker, unique: Unique) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    stored = "password_hash FROM users WHERE username = $1"
    await worker.database.execute(
        "UPDATE users SET password_hash = $1 WHERE username = $2", weak, alice
    )
    device = (await worker.log_in(alice)).device_token

    renewed = await worker.database.fetchval(f"SELECT {stored}", alice)  # constant
    again = await worker.log_in(alice, device_token=device)

    assert renewed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await worker.database.fetchval(f"SELECT {stored}", alice) == renewed
    assert again.device_token == device


async def test_concurrent_log_ins_with_an_old_hash_all_succeed(
    worker: Worker, unique: Unique
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    await worker.database.execute(
        "UPDATE users SET password_hash = $1 WHERE username = $2", weak, alice
    )

    assert await asyncio.gather(*(reason(worker.log_in(alice)) for _ in range(5))) == [""] * 5


@pytest.mark.parametrize(
    "password",
    [
        "12345678",
        "password",
        "PassWord",
        "qwertyui",
        "postbus1",
        "POSTBUS-2026",
        " " * 8,
        "abababab",
    ],
)
async def test_common_passwords_are_refused(password: str, worker: Worker, unique: Unique) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    token = (await worker.log_in(alice)).access_token
    change = ChangePasswordRequest(current_password=PASSWORD, new_password=password)

    with pytest.raises(ServiceError) as at_sign_up:
        await worker.sign_up(unique("bob"), password=password)
    with pytest.raises(ServiceError) as at_change:
        await worker.call(f"{AUTH}.ChangePassword", change, access_token=token)

    for raised, field in ((at_sign_up, "password"), (at_change, "newPassword")):
        assert raised.value.reason == "PASSWORD_TOO_COMMON"
        assert [each.field for each in raised.value.violations] == [field]


def test_common_password_that_contains_a_context_word_is_refused() -> None:
    for password in ("1234567890qwerty", "PostbusPassword"):
        with pytest.raises(ServiceError, match="PASSWORD_TOO_COMMON"):
            require_uncommon(password, username="qwe", email="x@example.com", field="password")


async def test_password_made_of_context_words_is_refused(worker: Worker, unique: Unique) -> None:
    name, mail = unique("alice"), unique("mail")
    email = f"{mail}@example.com"

    for password in (name, f"{name.upper()}1!", mail, email, f"postbus{mail}7", f"{name}password"):
        refused = worker.sign_up(name, email=email, password=password)
        assert await reason(refused) == "PASSWORD_TOO_COMMON", password
    for password in ("83920174", "        x7!q", "日本語パスワード長い"):
        accepted = worker.sign_up(unique("bob"), password=password)
        assert await reason(accepted) == "", password


@pytest.mark.parametrize("name", ["admin", "ROOT", "post-bus", "Support_"])
async def test_reserved_names_are_refused(name: str, worker: Worker, unique: Unique) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    token = (await worker.log_in(alice)).access_token
    rename = UpdateMeRequest(username=name)
    rename.update_mask.paths = ["username"]

    for call in (
        worker.sign_up(name),
        worker.call("postbus.users.v1.UsersService.UpdateMe", rename, access_token=token),
    ):
        with pytest.raises(ServiceError) as raised:
            await call
        assert raised.value.reason == "USERNAME_RESERVED"
        assert [each.field for each in raised.value.violations] == ["username"]


async def test_security_events_are_logged_without_secrets_and_names(
    worker: Worker, unique: Unique
) -> None:
    alice, wrong = unique("alice"), unique("wrong")
    user_id = (await worker.sign_up(alice)).user.id
    with structlog.testing.capture_logs() as lines:
        for _ in range(6):
            await reason(worker.log_in(alice, wrong, address=HERE))
        session = await worker.log_in(alice, address=ELSEWHERE)
        await worker.refresh(session.refresh_token)
        await reason(worker.refresh(session.refresh_token))
        token = (await worker.log_in(alice, address=ELSEWHERE)).access_token
        delete = DeleteMeRequest()
        await worker.call("postbus.users.v1.UsersService.DeleteMe", delete, access_token=token)

    events = [line["event"] for line in lines]
    assert events.count("security.log_in_failed") == 5
    for event in ("throttled", "log_in_succeeded", "refresh_reused", "account_deleted"):
        assert f"security.{event}" in events
    security = [line for line in lines if line["event"].startswith("security.")]
    assert {line["user_id"] for line in security} == {user_id}
    addresses = {line["address"] for line in security if "log_in" in line["event"]}
    assert addresses == {HERE, ELSEWHERE}
    for secret in (alice, wrong, PASSWORD, session.refresh_token, token):
        assert secret not in str(lines)
