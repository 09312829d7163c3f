"""Which tokens a pass is over: where each stands in its text, and whether the model wrote it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

Prompt = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Passage:
    """The tokens of one pass, and the texts that they end.

    `text` holds all tokens so far, those of earlier passes over the same texts too (-1 where they are not
    known); the pass itself is over its columns from `start` to `stop`. Positions count real tokens: padding
    on either side has none.

    >>> tokens = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    >>> passage = Passage(tokens, mask=tokens > 0, start=4, stop=5, prompt=torch.tensor([2, 4]))
    >>> passage.position
    tensor([[-1, -1,  0,  1,  2],
            [ 0,  1,  2,  3,  4]])
    >>> passage.of_this_pass(passage.generated)
    tensor([[True],
            [True]])
    """

    text: Int[Tensor, "row text"]
    mask: Bool[Tensor, "row text"] | None  # True at tokens; None where there is no padding
    start: int
    stop: int
    prompt: Int[Tensor, " row"] | None = None  # how many of its tokens are the prompt; None: all
    given: int = 0  # rows that were asked for, where each is followed by several beams; 0: all of them
    subset: Int[Tensor, " row"] | None = None  # which of them, where they are asked for in several goes
    total: int = 0  # how many there are in all, of which the subset is
    columns: int | None = None  # columns of the prompt, where it ends in the same one in every row
    memory: dict[Any, Any] = field(default_factory=dict)  # what lasts as long as the texts go on
    placed: dict[int, Tensor] = field(default_factory=dict)  # what was worked out for this pass

    @cached_property
    def real(self) -> Bool[Tensor, "row text"]:
        return torch.ones_like(self.text, dtype=torch.bool) if self.mask is None else self.mask

    @cached_property
    def position(self) -> Int[Tensor, "row text"]:
        """Where each token stands in its text, from 0; -1 at padding."""
        return torch.where(self.real, self.real.long().cumsum(-1) - 1, -1)

    @cached_property
    def generated(self) -> Bool[Tensor, "row text"]:
        """Which tokens come after the prompt."""
        if self.prompt is None:
            return torch.zeros_like(self.real)
        return self.real & (self.position >= self.prompt[:, None])

    @property
    def prompted(self) -> Bool[Tensor, "row text"]:
        """Which tokens belong to the prompt."""
        return self.real & ~self.generated

    @property
    def only_generated(self) -> bool:
        """Whether it is plain that this pass is over generated tokens alone."""
        return self.columns is not None and self.start >= self.columns

    @property
    def rows(self) -> Int[Tensor, " row"]:
        """Which of the rows that were asked for each row goes on with."""
        n = len(self.text)
        rows = torch.arange(n, device=self.text.device) // (n // (self.given or n))
        return rows if self.subset is None else self.subset.to(rows.device)[rows]

    @property
    def n_rows(self) -> int:
        """How many rows were asked for."""
        return self.given or len(self.text) if self.subset is None else self.total

    def of_this_pass(self, x: Tensor) -> Tensor:
        """The columns of `x` (row text) that the pass is over."""
        return x[:, self.start : self.stop]

    def part(self, start: int, stop: int) -> Passage:
        """The pass over some of its columns, counted from its first."""
        return replace(self, start=self.start + start, stop=self.start + stop, placed={})

    def alone(self, row: int) -> Passage:
        """The pass over one of its rows."""
        some = slice(row, row + 1)
        return replace(
            self,
            text=self.text[some],
            mask=None if self.mask is None else self.mask[some],
            prompt=None if self.prompt is None else self.prompt[some],
            given=1,
            subset=self.rows[some],
            total=self.n_rows,
            memory={},
            placed={},
        )


@dataclass(eq=False)
class _Generation:
    """What is known of a call of `generate` that is under way."""

    columns: int | None  # of the prompt
    given: int
    memory: dict[Any, Any] = field(default_factory=dict)
    subset: Tensor | None = None
    total: int = 0
    text: Tensor | None = None
    mask: Tensor | None = None
    prompt: Tensor | None = None  # how many of a row's tokens are the prompt
    pads: bool = False
    embedded: int = 0  # columns of a prompt that is given as embeddings


class Follower:
    """Knows which tokens the pass is over that a module is in.

    It listens at the module, and to its `generate` and `prepare_inputs_for_generation` where it has them:
    a cached step is handed one token, and only these know what stands before it.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)  # the model holds both
        self._open = 0
        self._passages: list[Passage] = []
        self._generations: list[_Generation] = []
        self._prompts: list[Tensor | int | None] = []
        self._subset: tuple[Tensor | None, int] = (None, 0)
        self.parted = 0  # how many hold that passes are made in parts
        self.told: Passage | None = None  # by somebody who makes a pass in parts

    @property
    def passage(self) -> Passage | None:
        """That of the pass under way."""
        return self._passages[-1] if self._passages else None

    @contextmanager
    def following(self, prompt: Prompt | None = None) -> Iterator[Follower]:
        """While open, `passage` is kept. `prompt` is how many tokens of a pass outside `generate` are prompt,
        one number or one for each row; None: all."""
        known = prompt if prompt is None or isinstance(prompt, int) else torch.as_tensor(prompt).long()
        if known is not None and bool((torch.as_tensor(known) < 0).any()):
            raise ValueError(f"prompt={prompt}: a prompt has no fewer than 0 tokens.")
        self._prompts.append(known)
        try:
            if self._open:
                self._open += 1
                yield self
            else:
                with self._listening():
                    self._open += 1
                    yield self
        finally:
            self._open = max(self._open - 1, 0)
            self._prompts.pop()

    @contextmanager
    def of_rows(self, rows: Tensor, total: int) -> Iterator[None]:
        """While open, what is generated is for these of so many rows."""
        before, (outer, all_rows) = self._subset, self._subset
        self._subset = (rows, total) if outer is None else (outer[rows.to(outer.device)], all_rows)
        try:
            yield
        finally:
            self._subset = before

    @contextmanager
    def telling(self, passage: Passage) -> Iterator[None]:
        """While open, that is the passage of every pass."""
        before, self.told = self.told, passage
        try:
            yield
        finally:
            self.told = before

    def resumed(self, tokens: Int[Tensor, "row pos"], start: int) -> Passage:
        """The pass over tokens that come after `start` others, which are not known."""
        text = torch.cat([tokens.new_full((len(tokens), start), -1), tokens], dim=1)
        prompt = self._prompt(len(tokens), tokens.device)
        return Passage(text, None, start, text.shape[1], prompt)

    def narrowed(self, start: int, stop: int) -> AbstractContextManager[None]:
        """While open, the pass under way is over these of its columns only."""
        return self._within(lambda whole: whole.part(start, stop))

    def alone(self, row: int) -> AbstractContextManager[None]:
        """While open, the pass under way is over this of its rows only."""
        return self._within(lambda whole: whole.alone(row))

    @contextmanager
    def _within(self, part: Callable[[Passage], Passage]) -> Iterator[None]:
        whole = self.passage
        if whole is None:
            yield
            return
        self._passages.append(part(whole))
        try:
            yield
        finally:
            self._passages.pop()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        module = self._module()
        assert module is not None
        shadowed = {
            name: (module.__dict__.get(name), shadow(getattr(module, name)))
            for name, shadow in (
                ("generate", self._generate),
                ("prepare_inputs_for_generation", self._prepare),
            )
            if hasattr(module, name)
        }
        handles = [
            module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]
        try:
            for name, (_, shadow) in shadowed.items():
                module.__dict__[name] = shadow
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, (before, _) in shadowed.items():
                if before is None:
                    del module.__dict__[name]
                else:
                    module.__dict__[name] = before
            self._passages.clear()

    def _generate(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)  # transformers reads the signature
        def generate(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
            mask, known = kwargs.get("attention_mask"), isinstance(ids, Tensor) and ids.ndim == 2
            columns = None
            if known:
                columns = max(ids.shape[1], mask.shape[1] if isinstance(mask, Tensor) else 0)  # type: ignore[union-attr]
            given = len(ids) if known else 0  # type: ignore[arg-type]
            embeds = kwargs.get("inputs_embeds")
            if not known and isinstance(embeds, Tensor):
                columns, given = embeds.shape[1], len(embeds)
            self._generations.append(_Generation(columns, given, {}, *self._subset))
            self._generations[-1].embedded = 0 if known or columns is None else columns
            try:
                return own(*args, **kwargs)
            finally:
                self._generations.pop()

        return generate

    def _prepare(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)  # transformers reads the signature
        def prepare(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._generations:
                now, mask = self._generations[-1], kwargs.get("attention_mask")
                unknown = input_ids.new_full((len(input_ids), now.embedded), -1)
                now.text = torch.cat([unknown, input_ids], dim=1) if now.embedded else input_ids
                now.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
                if now.columns is None:
                    now.columns, now.given = input_ids.shape[1], len(input_ids)
            return own(input_ids, *args, **kwargs)

        return prepare

    def _enter(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.told is not None:
            self._passages.append(self.told)
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape = ids if isinstance(ids, Tensor) else kwargs.get("inputs_embeds")
        if not isinstance(shape, Tensor):
            raise ValueError(
                "This pass is given neither tokens nor embeddings, so its positions are not known."
            )
        if not isinstance(ids, Tensor):
            ids = torch.full(shape.shape[:2], -1, device=shape.device)
        now = self._generations[-1] if self._generations else None
        if now is not None and now.text is not None:
            self._passages.append(_within(now, ids))
        else:
            passage = _alone(ids, kwargs, self._prompt(len(ids), ids.device))
            self._passages.append(replace(passage, subset=self._subset[0], total=self._subset[1]))

    def _leave(self, *_: Any) -> None:
        if self._passages:
            self._passages.pop()

    def _prompt(self, rows: int, device: torch.device) -> Tensor | None:
        known = next((prompt for prompt in reversed(self._prompts) if prompt is not None), None)
        if known is None:
            return None
        if isinstance(known, int) or known.ndim == 0:
            return torch.full((rows,), int(known), device=device)
        if rows % len(known):
            raise ValueError(f"`prompt` has {len(known)} lengths, but the pass is over {rows} rows.")
        return known.to(device).repeat(rows // len(known))


def _within(now: _Generation, ids: Tensor) -> Passage:
    """A pass that `generate` makes."""
    assert now.text is not None and now.columns is not None
    text, mask = _padded(now.text, now.mask)
    if now.prompt is None or len(now.prompt) != len(text):  # the same for all passes that follow
        columns = min(now.columns, text.shape[1])
        now.prompt = torch.full((len(text),), columns, device=text.device)
        if mask is not None:
            now.prompt = mask[:, :columns].sum(-1)
            now.pads = not mask[:, :columns].all()
    width = text.shape[1]
    return Passage(
        text,
        mask.bool() if now.pads and mask is not None else None,
        width - ids.shape[1],
        width,
        now.prompt,
        now.given,
        now.subset,
        now.total,
        now.columns,
        now.memory,
    )


def _alone(ids: Tensor, kwargs: dict[str, Any], prompt: Tensor | None) -> Passage:
    """A pass that somebody else makes; of a cached one the mask or the cache says how much came before."""
    mask = kwargs.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    length = ids.shape[1]
    cache: Any = kwargs.get("past_key_values")
    if mask is None and hasattr(cache, "get_seq_length"):
        mask = torch.ones(len(ids), int(cache.get_seq_length()) + length, device=ids.device)
    if mask is None and any(kwargs.get(name) is not None for name in ("cache_params", "state")):
        raise ValueError(
            "This pass goes on from a state, and nothing says how much was read before: give it an "
            "`attention_mask` over the whole text, or go on by `recurrence.resume`."
        )
    text, mask = _padded(ids, mask)
    mask = None if mask is None or bool(mask.all()) else mask.bool()
    return Passage(text, mask, text.shape[1] - length, text.shape[1], prompt)


def _padded(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens as wide as their mask: those that came before are not known."""
    if mask is not None and mask.shape[1] > ids.shape[1]:
        before = ids.new_full((len(ids), mask.shape[1] - ids.shape[1]), -1)
        ids = torch.cat([before, ids], dim=1)
    return ids, mask
