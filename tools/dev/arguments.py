"""The arguments of `just dev`."""

import argparse
from typing import Final

from tools.paths import SERVICES

FIRST_PORT: Final = 8000
GATEWAY: Final = "gateway"
_MOST_PROCESSES: Final = 16
"""Of one service: a bound on what a mistyped number starts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of the command: how many processes of each service, and the port."""
    for service in SERVICES:
        option = "--gateways" if service == GATEWAY else f"--{service}"
        about = (
            "gateways, on consecutive ports" if service == GATEWAY else f"processes of {service}"
        )
        parser.add_argument(
            option,
            dest=service,
            type=int,
            choices=range(1, _MOST_PROCESSES + 1),
            default=1,
            metavar="N",
            help=f"number of {about} (default: 1)",
        )
    parser.add_argument(
        "--port",
        type=int,
        help=f"port of the first gateway (default: from {FIRST_PORT} on, the first free one)",
    )
