"""`just chaos [--all] [ROW...]`: inject faults under load, compare, and print a table."""

import argparse
import asyncio
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path

from tests.conftest import Place as Servers
from tests.conftest import new_mongo_database, new_postgres_database
from tests.faults.chaos import report
from tests.faults.chaos.checker import Findings
from tests.faults.chaos.rows import ROWS, SECONDS, all_runs, default_runs
from tests.faults.chaos.run import Outcome, chaotic_system, compare, inject_under_load
from tests.tokens import TokenMaker
from tools.paths import ROOT
from tools.servers import ServersUnavailableError, servers
from tools.servers.signals import end_on_signals


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 1 if a promise was broken."""
    options = _options(arguments)
    seed = int(os.environ.get("POSTBUS_SEED") or secrets.randbelow(2**32))
    dice = random.Random(seed)  # noqa: S311  # a choice of faults
    runs = [(name,) for name in options.rows] or (all_runs(dice) if options.all else default_runs())
    outcome = Outcome()
    end_on_signals()
    try:
        with servers("chaos") as addresses:
            os.environ.update(addresses.as_environment())
            bounded = not options.all and not options.rows
            asyncio.run(_run(runs, dice, outcome, seconds=SECONDS if bounded else float("inf")))
    except KeyboardInterrupt:
        print(f"chaos: interrupted; so far:\n{report.table(outcome, seed)}")
        return 130
    except ServersUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{report.table(outcome, seed)}\n")
    if options.all:
        (ROOT / "docs" / "faults.md").write_text(report.page(outcome, seed))
    return _verdict(outcome, seed)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just chaos", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every row, and pairs of rows")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there is {', '.join(ROWS)}")
    return options


async def _run(
    runs: Sequence[tuple[str, ...]], dice: random.Random, outcome: Outcome, *, seconds: float
) -> None:
    run_id = f"chaos_{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:
        place = Servers(
            amqp_url=os.environ["POSTBUS_AMQP_URL"],
            postgres_url=await stack.enter_async_context(new_postgres_database(run_id)),
            mongo_url=await stack.enter_async_context(new_mongo_database(run_id)),
        )
        logs = Path(tempfile.mkdtemp(prefix="postbus-chaos-"))
        print(f"chaos: {len(runs)} runs; the logs are in {logs}", flush=True)
        management = os.environ["POSTBUS_AMQP_MANAGEMENT_URL"]
        system = chaotic_system(place, run_id, TokenMaker(), logs, management)
        chaotic = await stack.enter_async_context(system)
        chaotic.dice.setstate(dice.getstate())

        def unique(prefix: str) -> str:
            return f"{prefix}{secrets.token_hex(5)}"

        load = inject_under_load(chaotic, unique, runs, seconds=seconds, outcome=outcome)
        outcome.findings = await compare(chaotic, await load, outcome.left)


def _verdict(outcome: Outcome, seed: int) -> int:
    broken = report.late(outcome)
    for name, found in asdict(outcome.findings or Findings()).items():
        if found:
            broken.append("\n  ".join([f"{name}: {len(found)}", *found[:5]]))
    for each in broken:
        print(f"chaos: {each}")
    print("chaos: failed" if broken else f"chaos: every promise was kept (seed {seed})")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
