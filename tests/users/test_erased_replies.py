"""The erasure of a deleted user reaches the stored replies of `users`."""

from collections.abc import Callable

from postbus.users.v1 import DeleteMeRequest, UpdateMeRequest
from tests.people import eventually
from tests.users.conftest import Worker

Unique = Callable[[str], str]
USERS = "postbus.users.v1.UsersService"


async def test_stored_replies_of_a_deleted_user_are_erased(worker: Worker, unique: Unique) -> None:
    name = unique("alice")
    await worker.sign_up(name)
    token = (await worker.log_in(name)).access_token
    update = UpdateMeRequest(bio=f"bio of {name}")
    update.update_mask.paths = ["bio"]
    await worker.call(f"{USERS}.UpdateMe", update, access_token=token)
    query = "SELECT count(*) FROM inbox WHERE position($1::bytea IN reply) > 0"

    stored = await worker.database.fetchval(query, name.encode())
    await worker.call(f"{USERS}.DeleteMe", DeleteMeRequest(), access_token=token)

    async def erased() -> bool:
        return bool(await worker.database.fetchval(query, name.encode()) == 0)

    assert stored == 2  # of the sign-up and of the update
    await eventually(erased)
