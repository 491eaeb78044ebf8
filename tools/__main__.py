"""The command line behind the recipes of the justfile: `python -m tools`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from tools.servers import InfrastructureError
from tools.servers.signals import end_on_signals

Command = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "test":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    end_on_signals()
    try:
        return _COMMANDS[options.command][1](options) or 0
    except InfrastructureError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools", description="Developer's commands.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, _) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, add_help=name != "test")
        if name == "logs":
            command.add_argument("names", nargs="*", metavar="NAME", help="a server or a service")
            command.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
        if name == "new-service":
            command.add_argument("name", metavar="NAME", help="a plural, such as comments")
            command.add_argument("--thing", default="", help="its singular, where it is irregular")
            command.add_argument(
                "--database",
                choices=("postgres", "mongo"),
                default="postgres",
                help="postgres if unsaid",
            )
        if name == "dlq" and "dlq" in sys.argv:  # slow to import
            from tools.dlq import add_arguments

            add_arguments(command)
        if name == "remove-service":
            command.add_argument("name", metavar="NAME", help="a service")
            command.add_argument("-y", "--yes", action="store_true", help="don't ask")
    return parser


def _up(_: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.up()


def _down(_: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.down()


def _status(_: argparse.Namespace) -> None:
    from tools.servers import lifecycle

    lifecycle.status()


def _logs(options: argparse.Namespace) -> None:
    from tools.logs import show

    show(options.names, follow=options.follow)


def _dev(_: argparse.Namespace) -> int:
    from tools.dev.dev import dev

    return dev()


def _test(options: argparse.Namespace) -> int:
    from tools.test import test

    return test(options.rest)


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
    from tools.paths import DEV, ROOT
    from tools.secrets import rotate_keys

    for file in (DEV / "secrets.env", ROOT / ".env"):
        if file.exists():
            rotate_keys(file)
            print(f"rotate-keys: {file.relative_to(ROOT)}: restart all services, in any order")


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
    "up": ("start the servers to stay", _up),
    "down": ("stop the servers", _down),
    "status": ("show the servers and who uses them", _status),
    "logs": ("show logs of servers and services", _logs),
    "dev": ("run the whole system, restarting what changes", _dev),
    "test": ("run pytest on real servers; all arguments are pytest's", _test),
    "check": ("look at everything that can be checked without running it", _check),
    "contracts": ("build the release folder of the contracts", _contracts),
    "demo": ("tell a story against the real system", _demo),
    "new-service": ("write a service that works, to make it yours", _new_service),
    "remove-service": ("remove a service and its entries in other files", _remove_service),
    "seed": ("add users and posts to a running system", _seed),
    "migrate": ("bring the databases up to date", _migrate),
    "dlq": ("list, show, replay or drop events that a consumer could not deal with", _dlq),
    "secrets": ("write .env for docker compose, once", _secrets),
    "rotate-keys": ("sign access tokens with the next key, and make another", _rotate_keys),
    "repair": ("set counters right, and say which were wrong", _repair),
}

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main(sys.argv[1:]))
