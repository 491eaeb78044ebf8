"""`just bench [SUITE...]`: measure ours and the rivals in one run."""

import sys
from collections.abc import Callable, Sequence
from typing import Final

from bench import codec, events, hot, http, memory, rpc, scale
from bench.report import Result, publish

_SUITES: Final[dict[str, Callable[[], Sequence[Result]]]] = {
    "codec": codec.run,
    "rpc": rpc.run,
    "http": http.run,
    "events": events.run,
    "memory": memory.run,
    "scale": scale.run,
    "hot": hot.run,
}


def main(names: Sequence[str]) -> None:
    """Run the suites with these names, or all."""
    unknown = [name for name in names if name not in _SUITES]
    if unknown:
        sys.exit(f"bench: no suite {', '.join(unknown)}; there is {', '.join(_SUITES)}")
    for name in names or _SUITES:
        publish(name, _SUITES[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
