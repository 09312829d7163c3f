"""A frozen language model whose sites have names, and the one engine that visits them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .loading import load
from .sites import Layout, Side, Site
from .structure import arguments, discover, name_sites, observe, place
from .tensors import hidden, hidden_inputs, with_hidden, with_hidden_input

Visit = Callable[[Site, Tensor], Tensor]


class Model:
    """A frozen causal language model. `Model.load` makes one."""

    def __init__(self, module: nn.Module, tokenizer: Any = None, *, layout: Layout | None = None):
        self.module = module
        self.tokenizer = tokenizer
        self._observation = observe(module, self._sample())
        self.layout = layout or discover(module, self._observation)
        self.sites: Mapping[str, Site] = MappingProxyType(name_sites(module, self.layout, self._observation))
        self._muted = False

    @classmethod
    def load(
        cls,
        source: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> Model:
        """A model from the Hugging Face hub, a folder, a .gguf file, or a module at hand."""
        module, tokenizer = load(source, tokenizer=tokenizer, device=device, dtype=dtype)
        return cls(module, tokenizer, layout=layout)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.module.get_submodule(self.layout.blocks)  # type: ignore[return-value]

    def site(self, name: str | Site) -> Site:
        """The site of that name."""
        if isinstance(name, Site):
            return name
        if name not in self.sites:
            raise KeyError(f"No site {name!r}; this model has {', '.join(self.sites)}.")
        return self.sites[name]

    def at(self, path: str, side: Side = "out", name: str | None = None) -> Site:
        """A site at any module: what enters or leaves it."""
        site = place(self.module, path, side, name or f"{path}.{side}", self._observation)
        if site is None:
            raise ValueError(f"No tensor (batch pos width) passes the {side} side of {path!r} once a pass.")
        return site

    @contextmanager
    def visiting(self, sites: Iterable[str | Site], visit: Visit) -> Iterator[None]:
        """While open, every forward pass hands each site's tensor to `visit` and goes on with its result."""

        def entering(site: Site):
            def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]):
                if self._muted:
                    return None
                x = hidden_inputs(args, kwargs)[0]
                y = visit(site, x)
                return None if y is x else with_hidden_input(args, kwargs, y)

            return hook

        def leaving(site: Site):
            def hook(_module: nn.Module, _args: tuple, out: Any):
                if self._muted:
                    return None
                x = hidden(out)
                assert x is not None
                y = visit(site, x)
                return None if y is x else with_hidden(out, y)

            return hook

        handles = []
        try:
            for site in dict.fromkeys(self.site(s) for s in sites):
                module = self.module.get_submodule(site.path)
                if site.side == "in":
                    handles.append(module.register_forward_pre_hook(entering(site), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(leaving(site)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits."""
        told = arguments(self.module)
        if mask is not None:
            mask = mask.to(self.device).long()
            if (mask[:, 1:] > mask[:, :-1]).any():
                raise ValueError("mask: padding on the left is not supported; pad on the right.")
            if not mask.all() and "attention_mask" in inspect.signature(self.module.forward).parameters:
                told["attention_mask"] = mask
        out = self.module(tokens.to(self.device), **told)
        if isinstance(out, Tensor):
            return out
        return out.logits if hasattr(out, "logits") else out[0]

    @torch.no_grad()
    def read(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[str | Site],
        mask: Int[Tensor, "batch pos"] | None = None,
    ) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
        """The tensors at some sites."""
        seen: dict[Site, Tensor] = {}

        def keep(site: Site, x: Tensor) -> Tensor:
            seen[site] = x
            return x

        with self.visiting(sites, keep):
            self.logits(tokens, mask)
        return seen

    def _sample(self) -> Tensor:
        config = getattr(self.module, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        special = {getattr(text, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
        vocab = getattr(text, "vocab_size", None) or 16
        ids = [i for i in range(min(vocab, 32)) if i not in special][-6:]
        return torch.tensor(ids, device=self.device).reshape(2, 3)
