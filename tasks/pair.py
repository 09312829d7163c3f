"""One question: a prompt, the prompt it is compared with, and the tokens that answer each."""

from __future__ import annotations

from dataclasses import dataclass

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A clean prompt and its patch, which differ in the one thing that the task is about.

    The `answers` are right after `clean`; the `foils` are wrong there, and right after `patch` where the
    task has such tokens. A prompt that is compared with nothing has `patch=None`. Prompts are text or
    token ids. An answer is a token id, or text that continues the prompt by exactly one token (so for
    most tokenizers it starts with a space). `case` names the kind of example.

    >>> Pair("The boy", "The boys", answers=(" is",), foils=(" are",), case="singular").foils
    (' are',)
    """

    clean: Prompt
    patch: Prompt | None
    answers: tuple[str | int, ...]
    foils: tuple[str | int, ...] = ()
    case: str = ""

    def __post_init__(self) -> None:
        text = isinstance(self.clean, str)
        prompts = {"clean": self.clean} if self.patch is None else {"clean": self.clean, "patch": self.patch}
        for name, prompt in prompts.items():
            if not (isinstance(prompt, str) if text else _is_tuple_of(prompt, int)):
                both = "texts, or both are tuples of token ids"
                raise TypeError(f"Clean and patch are {both}; `{name}` is {prompt!r}.")
        for name, tokens in (("answers", self.answers), ("foils", self.foils)):
            if not _is_tuple_of(tokens, (str, int) if text else int):
                allowed = "texts or token ids" if text else "token ids, as the prompt is"
                raise TypeError(f"`{name}` is a tuple of {allowed}, not {tokens!r}.")


def _is_tuple_of(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, kind) for v in value)
