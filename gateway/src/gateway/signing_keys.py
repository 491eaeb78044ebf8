"""GetSigningKeys, which the gateway serves itself, from the keys by which it verifies tokens.

Clients that verify tokens by /.well-known/jwks.json then need not trust a reply of the bus.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Final

from google.protobuf.json_format import ParseDict

from shared.bus import Call
from shared.bus.reply import CallResult
from shared.wire import message_class

__all__ = ["GET_SIGNING_KEYS", "signing_keys"]

GET_SIGNING_KEYS: Final = "postbus.users.v1.AuthService.GetSigningKeys"
_RESPONSE: Final = message_class("postbus.users.v1.GetSigningKeysResponse")


def signing_keys(key_set: str) -> Callable[[Call], Awaitable[CallResult]]:
    """Return the method for a JSON Web Key Set (RFC 7517).

    The response has only the public members of the keys: the contract has no field for others.
    """
    keys = {"keys": json.loads(key_set)["keys"]}
    response = ParseDict(keys, _RESPONSE(), ignore_unknown_fields=True)
    result = CallResult(response.SerializeToString(), replayed=False, caller_revision=0)

    async def answer(_call: Call) -> CallResult:
        return result

    return answer
