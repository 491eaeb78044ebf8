"""Make all accounts, once: `python -m tools.accounts`, which docker compose runs.

Needs ACCOUNTS_MANAGEMENT_URL, ACCOUNTS_POSTGRES_URL and ACCOUNTS_MONGO_URL with administrators'
accounts, and the passwords in variables such as RABBITMQ_USERS_PASSWORD.
"""

import asyncio
import os
import sys
from collections.abc import Mapping

from tools.accounts.errors import MissingRightsError
from tools.accounts.passwords import password_names
from tools.accounts.set_up import set_up_broker_accounts, set_up_database_accounts


def main(environment: Mapping[str, str]) -> None:
    """Make the accounts; SystemExit that names what is missing."""
    try:
        passwords = {name: environment[name.upper()] for name in password_names()}
        management, postgres, mongo = (
            environment[f"ACCOUNTS_{server}_URL"] for server in ("MANAGEMENT", "POSTGRES", "MONGO")
        )
        set_up_broker_accounts(management, "/", passwords)
        asyncio.run(set_up_database_accounts(postgres, mongo, passwords))
    except KeyError as error:
        sys.exit(f"accounts: {error.args[0]} is not set: run ./just secrets")
    except MissingRightsError as error:
        sys.exit("\n".join([f"accounts: {error}. As an administrator, run:", *error.commands]))
    print("accounts: up to date")


if __name__ == "__main__":
    main(os.environ)
