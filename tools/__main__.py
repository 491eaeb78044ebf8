"""The command line behind the recipes of the justfile: `python -m tools`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from tools.servers import ServersUnavailableError
from tools.servers.signals import end_on_signals

Command = Callable[[argparse.Namespace], int | None]
_PYTEST = ("test", "test-all")
"""Commands that pass all arguments to pytest."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command not in _PYTEST:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    end_on_signals()
    try:
        return _COMMANDS[options.command][1](options) or 0
    except ServersUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools", description="Developer's commands.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, _) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, add_help=name not in _PYTEST)
        if name == "logs":
            command.add_argument("names", nargs="*", metavar="NAME", help="a server or a service")
            command.add_argument("-f", "--follow", action="store_true", help="follow until Ctrl-C")
        if name == "new-service":
            command.add_argument("name", metavar="NAME", help="a plural, such as polls")
            command.add_argument("--thing", default="", help="the singular, if it is irregular")
            command.add_argument(
                "--database",
                choices=("postgres", "mongo"),
                default="postgres",
                help="default: postgres",
            )
        if name == "dev":
            from tools.dev.arguments import add_arguments as add_dev_arguments

            add_dev_arguments(command)
        if name == "dlq" and "dlq" in sys.argv:  # slow to import
            from tools.dlq import add_arguments

            add_arguments(command)
        if name == "up":
            from tools.servers.rabbitmq import MAX_NODES

            command.add_argument(
                "--rabbitmq-nodes",
                type=int,
                choices=range(1, MAX_NODES + 1),
                default=0,
                metavar="N",
                help="start RabbitMQ as a cluster of N nodes, at most 9 (default: one node)",
            )
        if name == "mutate":
            command.add_argument("words", nargs="*", metavar="WORD", help="in a file or a guard")
        if name == "remove-service":
            command.add_argument("name", metavar="NAME", help="a service")
            command.add_argument("-y", "--yes", action="store_true", help="skip the confirmation")
    return parser


def _up(options: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.up(rabbitmq_nodes=options.rabbitmq_nodes)


def _down(_: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.down()


def _status(_: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.status()


def _logs(options: argparse.Namespace) -> None:
    from tools.logs import show

    show(options.names, follow=options.follow)


def _dev(options: argparse.Namespace) -> int:
    from tools.dev.dev import dev

    return dev(options)


def _test(options: argparse.Namespace) -> int:
    from tools.test import test

    return test(options.rest)


def _test_all(options: argparse.Namespace) -> int:
    from tools.test import test

    return test(["--long", *options.rest])


def _mutate(options: argparse.Namespace) -> int:
    from tools.mutate import mutate

    return mutate(options.words)


def _check(_: argparse.Namespace) -> int:
    from tools.check import check

    return check()


def _demo(_: argparse.Namespace) -> int:
    from tools.dev.demo import demo

    return demo()


def _seed(_: argparse.Namespace) -> None:
    from tools.dev.seed import seed_running

    seed_running()


def _migrate(_: argparse.Namespace) -> None:
    from tools.migrate import migrate_standalone

    migrate_standalone()


def _contracts(_: argparse.Namespace) -> None:
    from tools.contracts.release import release
    from tools.paths import ROOT

    release(ROOT / "dist" / "contracts")
    print("contracts: dist/contracts has the documents, the page and the packages")


def _dlq(options: argparse.Namespace) -> int:
    from tools.dlq import dlq

    return dlq(options)


def _secrets(_: argparse.Namespace) -> None:
    from tools.paths import ROOT
    from tools.secrets import Secrets

    Secrets.load_or_create(ROOT / ".env")
    print("secrets: .env is there; docker compose reads it")


def _rotate_keys(_: argparse.Namespace) -> None:
    from tools.paths import ROOT, SECRETS
    from tools.secrets import rotate_keys

    for file in (SECRETS, ROOT / ".env"):
        if file.exists():
            rotate_keys(file)
            print(f"rotate-keys: {os.path.relpath(file, ROOT)}: restart all services, in any order")


def _pin(_: argparse.Namespace) -> int:
    from tools.supply_chain.pin import pin

    return pin()


def _sbom(_: argparse.Namespace) -> int:
    from tools.supply_chain.audit import sbom

    return sbom()


def _audit(_: argparse.Namespace) -> int:
    from tools.supply_chain.audit import audit

    return audit()


def _repair(_: argparse.Namespace) -> int:
    from tools.migrate import repair

    return repair()


def _new_service(options: argparse.Namespace) -> None:
    from tools.scaffold.service import new_service

    new_service(options.name, thing=options.thing, database=options.database)


def _remove_service(options: argparse.Namespace) -> None:
    from tools.scaffold.service import remove_service

    remove_service(options.name, yes=options.yes)


_COMMANDS: dict[str, tuple[str, Command]] = {
    "up": ("start the servers until `down`", _up),
    "down": ("stop the servers", _down),
    "status": ("show the servers and the commands that use them", _status),
    "logs": ("show logs of servers and services", _logs),
    "dev": ("run the whole system; services restart when their sources change", _dev),
    "test": ("run pytest on real servers; all arguments are passed to pytest", _test),
    "test-all": ("run the long suites of pytest as well", _test_all),
    "mutate": ("remove one guard at a time and see its tests fail", _mutate),
    "check": ("run the static checks", _check),
    "contracts": ("build the release folder of the contracts", _contracts),
    "demo": ("run a scripted session with the real system", _demo),
    "new-service": ("generate a working service", _new_service),
    "remove-service": ("remove a service and its entries in other files", _remove_service),
    "seed": ("add users and posts to a running system", _seed),
    "migrate": ("migrate the databases", _migrate),
    "dlq": ("list, show, replay or drop dead letters; release delayed events", _dlq),
    "secrets": ("write .env for docker compose, once", _secrets),
    "rotate-keys": (
        "sign access tokens with the next key, and generate a new next key",
        _rotate_keys,
    ),
    "pin": ("write the digests of images and actions beside their versions", _pin),
    "sbom": ("write a software bill of materials for each service to dist/sbom", _sbom),
    "audit": ("check licences and known vulnerabilities of all dependencies", _audit),
    "repair": ("correct derived data and report each correction", _repair),
}

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main(sys.argv[1:]))
