"""The hooks that hand a site's tensor to a visit and go on with what the visit returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .observation import Observation
from .sites import Site
from .tensors import hidden, hidden_inputs, with_hidden, with_hidden_input

Visit = Callable[[Site, Tensor], Tensor]


@contextmanager
def visited(
    module: nn.Module,
    sites: Iterable[Site],
    visit: Visit,
    *,
    first: nn.Module,
    seen: Observation,
    muted: Callable[[], bool],
) -> Iterator[None]:
    """While open, passes through `module` hand the tensors of `sites` to `visit`, unless `muted()`.

    `first` is the first block: it is where batch and pos are learned, for the sake of the modules that are
    handed both as one axis. `seen` says which these are, and whose tensors are written to in place later:
    a visit gets a copy of those, and its result is copied too.
    """
    shape = [0, 0]

    def learn(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if found := hidden_inputs(args, kwargs):
            shape[:] = found[0].shape[:2]

    def result(site: Site, x: Tensor, apart: bool) -> Tensor:
        rows = x.view(*shape, -1) if x.ndim == 2 else x
        y = visit(site, rows.clone()).clone() if apart else visit(site, rows)
        # What was visited must be what flows, for its gradient; a dictionary may be of another dtype.
        return y if y.shape == x.shape and y.dtype is x.dtype else y.reshape(x.shape).to(x.dtype)

    def entering(site: Site, ndim: int, apart: bool) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            if muted():
                return None
            x = hidden_inputs(args, kwargs, ndim)[0]
            y = result(site, x, apart)
            return None if y is x else with_hidden_input(args, kwargs, y, ndim)

        return hook

    def leaving(site: Site, ndim: int, apart: bool) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: tuple, out: Any) -> Any:
            x = hidden(out, ndim)
            if x is None or muted():
                return None
            y = result(site, x, apart)
            if y is x:
                return None
            return y if x is out else with_hidden(out, y, ndim)

        return hook

    handles = []
    try:
        flat = False  # whether some module is handed batch and pos as one axis
        for site in dict.fromkeys(sites):
            at = module.get_submodule(site.path)
            call = seen.once(at)
            ndim = call.ndim(site.side) if call else 3
            flat = flat or ndim == 2
            apart = call is not None and site.side in call.changed
            if site.side == "in":
                handles.append(at.register_forward_pre_hook(entering(site, ndim, apart), with_kwargs=True))
            else:
                handles.append(at.register_forward_hook(leaving(site, ndim, apart)))
        if flat:
            handles.append(first.register_forward_pre_hook(learn, with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
