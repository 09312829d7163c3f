"""From text to token ids, and which pairs have them in the form that a batch needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        text = next((p.clean for p in pairs if isinstance(p.clean, str) and p.clean), None)
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
        prompts = [pair.clean] if pair.patch is None else [pair.clean, pair.patch]
        if not all(prompts) or not pair.answers:
            raise Unfit("no prompt or no answer", repr(pair))
        ids = {prompt: self.ids(prompt) for prompt in prompts}
        if len({len(tokens) for tokens in ids.values()}) > 1:
            sizes = " and ".join(f"{prompt!r} has {len(tokens)}" for prompt, tokens in ids.items())
            raise Unfit("clean and patch have different numbers of tokens", sizes)
        if len(prompts) > len(set(ids.values())):
            raise Unfit("clean and patch are the same tokens", f"{pair.clean!r} and {pair.patch!r}")
        answers, foils = (
            tuple(dict.fromkeys(self._next(ids, answer) for answer in given))
            for given in (pair.answers, pair.foils)
        )
        if common := set(answers) & set(foils):
            raise Unfit("a token is both answer and foil", f"{sorted(common)} after {pair.clean!r}")
        patch = None if pair.patch is None else ids[pair.patch]
        return Encoded(ids[pair.clean], patch, answers, foils, pair.case)

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """A text as token ids, opened as the tokenizer opens one; token ids as they are."""
        if isinstance(prompt, tuple):
            return prompt
        assert self.tokenizer is not None
        return self.opening + tuple(self.tokenizer.encode(prompt, add_special_tokens=False))

    def _next(self, ids: Mapping[Prompt, tuple[int, ...]], answer: str | int) -> int:
        """The token by which the answer continues each of the prompts, whose ids are given."""
        if isinstance(answer, int):
            return answer
        # An answer on its own can be cut otherwise than in its place (SentencePiece adds a space to it),
        # so its token is what the prompt grows by.
        grown = {prompt: self.ids(f"{prompt}{answer}") for prompt in ids}
        for prompt, tokens in grown.items():
            if tokens[:-1] != ids[prompt]:
                raise Unfit("an answer or foil does not add one token", f"{answer!r} after {prompt!r}")
        if len({tokens[-1] for tokens in grown.values()}) > 1:
            raise Unfit("clean and patch go on by different tokens", f"{answer!r} after {list(grown)}")
        return grown[next(iter(grown))][-1]
