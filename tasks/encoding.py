"""From text to token ids, and which pairs have them in the form that a batch needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .batch import Tokenizer
from .pair import Pair, Prompt


class Unfit(ValueError):
    """Why a pair cannot be used with a tokenizer: a reason to count by, and this pair's particulars."""

    def __init__(self, reason: str, particulars: str) -> None:
        super().__init__(f"{reason} ({particulars})")
        self.reason = reason
        self.particulars = particulars


@dataclass(frozen=True)
class Encoded:
    """A pair as token ids."""

    clean: tuple[int, ...]
    patch: tuple[int, ...] | None
    answers: tuple[int, ...]
    foils: tuple[int, ...]
    case: str


@dataclass(frozen=True)
class Encoder:
    """Encodes pairs. `opening` holds the special tokens that the tokenizer puts before a text.

    What it puts after a text (an end token) has no place in a prompt that is to be continued.
    """

    tokenizer: Tokenizer | None
    opening: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, pairs: Iterable[Pair]) -> Encoder:
        """The encoder for these pairs; without texts among them it needs no tokenizer."""
        text = next((pair.clean for pair in pairs if isinstance(pair.clean, str)), None)
        if text is None:
            return cls(tokenizer, ())
        if tokenizer is None:
            raise TypeError(f"These pairs are texts, such as {text!r}: they need a tokenizer.")
        bare = tokenizer.encode(text, add_special_tokens=False)
        full = tokenizer.encode(text, add_special_tokens=True)
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return cls(tokenizer, tuple(full[:start]))

    def encoded(self, pair: Pair) -> Encoded:
        """The pair as token ids; raises `Unfit` where it does not have the form that a batch needs."""
        if not pair.clean or (pair.patch is not None and not pair.patch) or not pair.answers:
            raise Unfit("no prompt or no answer", repr(pair))
        clean = self._ids(pair.clean)
        patch = None if pair.patch is None else self._ids(pair.patch)
        if patch is not None and len(clean) != len(patch):
            sizes = f"{pair.clean!r} has {len(clean)} tokens and {pair.patch!r} {len(patch)}"
            raise Unfit("clean and patch of different lengths", sizes)
        answers, foils = self._next(pair, pair.answers), self._next(pair, pair.foils)
        if common := set(answers) & set(foils):
            raise Unfit("a token is both answer and foil", f"{sorted(common)} after {pair.clean!r}")
        return Encoded(clean, patch, answers, foils, pair.case)

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return prompt
        assert self.tokenizer is not None
        return self.opening + tuple(self.tokenizer.encode(prompt, add_special_tokens=False))

    def _next(self, pair: Pair, answers: Iterable[str | int]) -> tuple[int, ...]:
        """The distinct tokens by which the answers continue the pair's prompts."""
        prompts = [pair.clean] if pair.patch is None else [pair.clean, pair.patch]
        return tuple({t: None for answer in answers for t in self._continuations(prompts, answer)})

    def _continuations(self, prompts: list[Prompt], answer: str | int) -> set[int]:
        if isinstance(answer, int):
            return {answer}
        # An answer on its own can be cut otherwise than in its place (SentencePiece adds a space to it),
        # so its token is what the prompt grows by.
        added = set()
        for prompt in prompts:
            assert isinstance(prompt, str)
            before, after = self._ids(prompt), self._ids(prompt + answer)
            if after[:-1] != before:
                raise Unfit("an answer or foil does not add one token", f"{answer!r} after {prompt!r}")
            added.add(after[-1])
        if len(added) > 1:
            raise Unfit("clean and patch go on by different tokens", f"{answer!r} after {prompts}")
        return added
