"""Options that the commands on labelled texts have in common."""

from __future__ import annotations

from typing import Any

from .options import count


def add_some_sites(group: Any) -> None:
    group.add_argument(
        "--site", "--sites", dest="site", nargs="+", metavar="SITE",
        help="only these: names or patterns, such as 'resid.*'",
    )  # fmt: skip


def add_source(group: Any, biographies: str) -> None:
    """Where labelled texts come from; `biographies` says what is made where they are written by rules."""
    source = group.add_mutually_exclusive_group()
    source.add_argument("--train", metavar="FILE", help="texts with labels")
    source.add_argument("--biographies", type=count, metavar="N", help=biographies)
    source.add_argument(
        "--bias-in-bios", action="store_true", help="published ones, from the hub (needs `datasets`)"
    )
    group.add_argument("--each", type=count, metavar="N", help="published ones of each pair of labels")
    group.add_argument("--test", metavar="FILE", help="texts to test on (default: a part of --train)")
