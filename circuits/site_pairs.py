"""What dictionaries read and write, as it is named on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from interventions.model import Model

from .annotations import visible


def site_pairs(model: Model, sites: Sequence[str]) -> list[tuple[str, str]]:
    """What each dictionary reads and writes, from names, patterns and pairs of them.

    In a pair of patterns, the stars on the right stand for what those on the left stand for.

    Raises:
        LookupError: no such site.
        ValueError: two dictionaries that would write the same site; one that would read what comes after it.
    """
    pairs: list[tuple[str, str]] = []
    for given in sites:
        reads, arrow, writes = (part.strip() for part in given.partition("->"))
        named = [name for name in model.sites if fnmatchcase(name, reads)]
        if not named:
            named = [model.site(reads).name]  # also those that have a name without being listed
        for name in named:
            pairs.append((name, _filled(reads, name, writes) if arrow else name))
    for reads, writes in pairs:
        if model.site(reads) > model.site(writes):
            raise ValueError(f"{reads} comes after {writes}: from there it cannot be predicted.")
    written = [writes for _, writes in pairs]
    twice = next((name for name in written if written.count(name) > 1), None)
    if len(set(pairs)) < len(pairs):
        pairs = list(dict.fromkeys(pairs))
    elif twice:
        raise ValueError(f"Two dictionaries would write {twice}; train them into different folders.")
    return pairs


def _filled(pattern: str, name: str, other: str) -> str:
    """`other` with its stars filled in as those of `pattern` are in `name`."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)
    for part in match.groups() if match else ():
        other = other.replace("*", part, 1)
    return other


def described_pairs(pairs: Sequence[tuple[str, str]], widths: Mapping[str, int]) -> str:
    """Pairs in a few words, those of all layers as one, with how many features they have."""
    names = [writes if reads == writes else f"{reads}->{writes}" for reads, writes in pairs]
    stems = list(dict.fromkeys(re.sub(r"\.\d+(?=$|->)", ".*", visible(name)) for name in names))
    sizes = sorted(set(widths.values()))
    features = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    where = names[0] if len(names) == 1 else f"{len(names)} sites: {', '.join(stems)}"
    return f"at {where}; {features} features"
