"""Values by site, or by the name of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

from .sites import Site

T = TypeVar("T")
BySite: TypeAlias = Mapping[str, T] | Mapping[Site, T]


def by_name(values: BySite[Any]) -> dict[str, Any]:
    return {str(site): value for site, value in values.items()}


def check_covered(of: str, values: BySite[Any] | None, sites: BySite[Any]) -> None:
    """Raises ValueError where a site has no value."""
    missing = [] if values is None else sorted(by_name(sites).keys() - by_name(values).keys())
    if missing:
        raise ValueError(f"{of} there is nothing for {missing[0]}, which is changed.")
