"""Steering that stays: as a control vector in a file for llama.cpp, or as biases of a model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .intervention import Intervention
from .joined import Chain
from .limited import Placed
from .model import Model
from .observation import Call, Observation, observe, sample, text_config
from .sites import Site
from .splice import applied
from .steering.direction import Direction
from .tensor_edits import Add
from .writing import write

ARCH = "controlvector"  # what such a file says of itself


# Files for llama.cpp


def export_gguf(
    added: Intervention | Mapping[str, Tensor] | Mapping[Site, Tensor], path: str | Path, model: Model
) -> None:
    """Writes what is added to the residual stream to a GGUF file, for llama.cpp's `--control-vector`.

    `added` is an `Add`, several in a chain, or a direction; scales are multiplied in. llama.cpp adds the
    tensor `direction.N` (d_model, float32) to what its layer N, counted from 0, writes, which is
    `resid.N`; it has none for layer 0. repeng's files are laid out the same.

    Raises:
        ValueError: sites other than `resid.1` and later, other interventions than `Add`, or an `Add` at some
            tokens only.
        LookupError: a site that the model does not have.
        ImportError: gguf is not installed.
    """
    vectors = {_layer(model, site): vector for site, vector in _vectors(model, added).items()}
    gguf = _gguf()
    with TemporaryDirectory() as folder:
        made = Path(folder) / "control_vector.gguf"
        writer = gguf.GGUFWriter(made, ARCH)
        writer.add_string(f"{ARCH}.model_hint", getattr(text_config(model.module), "model_type", "unknown"))
        writer.add_uint32(f"{ARCH}.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write(Path(path), made.read_bytes())


def load_gguf(path: str | Path, model: Model) -> Direction:
    """The control vector in a GGUF file, of `export_gguf`, repeng or llama.cpp, as a direction of `model`.

    `direction.N` is at `resid.N`, in float32. `.how` has the file's `model_hint`, which is not checked:
    programs name models differently.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no control vector, or one of another width.
        LookupError: a layer that the model does not have.
        ImportError: gguf is not installed.
    """
    path, gguf = Path(path), _gguf()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        reader = gguf.GGUFReader(path)
        arch, hint = (_text(reader, key) for key in ("general.architecture", f"{ARCH}.model_hint"))
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is not a whole GGUF file: {error}") from None
    if arch != ARCH:
        raise ValueError(f"{str(path)!r} holds no control vector, but says that it is {arch!r}.")
    vectors: dict[int, Tensor] = {}
    for tensor in reader.tensors:
        found = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if found is None or len(tensor.shape) != 1 or tensor.tensor_type.name not in ("F32", "F16"):
            raise ValueError(
                f"{tensor.name!r} in {str(path)!r} is {tensor.tensor_type.name} of shape "
                f"{tuple(tensor.shape.tolist())}; a control vector has direction.N of shape (d_model), F32."
            )
        vectors[int(found[1])] = torch.tensor(tensor.data).float()
    how = {"method": "gguf", "model_hint": hint}
    sites = {f"resid.{layer}": vector for layer, vector in sorted(vectors.items())}
    return Direction(sites, how=how).check(model)


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())


def _layer(model: Model, site: Site) -> int:
    layer = model.block_of(site)
    whole = site.side == "out" and site.path == f"{model.layout.blocks}.{layer}"
    if layer is None or not whole or site.name != f"resid.{layer}":
        raise ValueError(
            f"A control vector is added to what whole layers write: {site} has no place in it, resid.1 to "
            f"resid.{len(model.blocks) - 1} have."
        )
    if layer == 0:
        raise ValueError(
            "llama.cpp takes no control vector at its first layer: leave out resid.0, or add to resid.1."
        )
    return layer


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise ImportError(
            "GGUF files need the package gguf: pip install 'breadboard-circuits[gguf]'."
        ) from None
    return gguf


# Biases


def bake(model: Model, added: Intervention | Mapping[str, Tensor] | Mapping[Site, Tensor]) -> Model:
    """A copy of `model` that computes what `model` does under `applied(model, added)`, without hooks.

    What is added at a site goes into the bias of the module that writes there, for `resid.N` of the last one
    in block N that writes into the stream; a linear module without a bias is given one. Whether a bias is
    the right one is tried out, with a random vector as long as the activations are. The copy shares its
    other weights with `model`. Where a bias is new, the model's config knows nothing of it, and
    `save_pretrained` of the copy refuses.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> add, tokens = Add({"resid.0": torch.randn(32)}, scale=4), torch.tensor([[3, 1, 4]])
    >>> with applied(model, add):
    ...     steered = model.logits(tokens)
    >>> torch.allclose(bake(model, add).logits(tokens), steered, atol=1e-4)
    True

    Raises:
        ValueError: other interventions than `Add`, an `Add` at some tokens only, or a site that no bias
            adds to, such as what a norm without bias writes.
        LookupError: a site that the model does not have.
    """
    vectors = _vectors(model, added)
    if any(_is_visit(hook) for module in model.module.modules() for hook in _hooks(module)):
        raise ValueError("The model is being visited or changed: bake outside of `applied` and `visiting`.")
    seen = observe(model.module, sample(model.module))
    baked = Model.load(_copied(model.module), tokenizer=model.tokenizer, layout=model.layout)
    found = {site: _bias(model, site, seen, baked) for site in vectors}
    new = {path: None for path, _ in found.values() if baked.module.get_submodule(path).bias is None}
    for site, (path, through) in found.items():
        _shift(baked.module.get_submodule(path), vectors[site], through)
    if new and hasattr(baked.module, "save_pretrained"):
        baked.module.save_pretrained = partial(_no_place, ", ".join(new))  # type: ignore[assignment]
    return baked


@torch.no_grad()
def _bias(model: Model, site: Site, seen: Observation, baked: Model) -> tuple[str, bool]:
    """The module whose bias adds to a site, and whether what is added goes through its weights first."""
    names = {id(module): name for name, module in model.module.named_modules()}
    tokens, probe = sample(model.module, 2, 5), _probe(model, site)
    plain = model.logits(tokens)
    with applied(model, Add({site.name: probe})):
        wanted = model.logits(tokens)
    tolerance = max(torch.finfo(model.dtype).eps ** 0.5, 1e-3) * (wanted - plain).abs().max()
    tried = []
    for call, through in _candidates(model, site, seen):
        path = names[id(call.module)]
        holder = baked.module.get_submodule(path)
        before = holder.bias
        try:
            _shift(holder, probe, through)
            off = (baked.logits(tokens) - wanted).abs().max()
        finally:
            holder.bias = before
        if off <= tolerance:
            return path, through
        tried.append(path)
    module = type(model.module.get_submodule(site.path)).__name__
    why = f"adding to that of {', '.join(tried)} does something else" if tried else f"{module} has none"
    raise ValueError(
        f"No bias adds to {site} ({site.path}, {site.side} side): {why}. `applied` steers there, and "
        "`Intervention.save` keeps what is added."
    )


def _candidates(model: Model, site: Site, seen: Observation) -> Iterator[tuple[Call, bool]]:
    """Calls of modules whose bias might add to a site, the likeliest first."""
    module = model.module.get_submodule(site.path)
    call = seen.once(module)
    if call is None:
        return
    if site.side == "in":
        if _takes_bias(module, call.width) and module.weight.ndim == 2:
            yield call, True
        every = [c for calls in seen.calls.values() if len(calls) == 1 for c in calls]
        found = [c for c in every if call.takes(c)]
    else:
        inside = [c for c in seen.inside(module, call) if seen.once(c.module) is c]
        last = sorted(inside, key=lambda c: (not c.same(call), -c.left))
        found = [call, *(c for c in last if c.width == call.width)]
    yield from ((c, False) for c in found if _takes_bias(c.module, site.width))


def _takes_bias(module: nn.Module, width: int) -> bool:
    """Whether a module has a bias (width), or weights and a place for one."""
    own = module._parameters
    if "bias" not in own or own.get("weight") is None:
        return False
    return own["bias"] is None or own["bias"].shape == (width,)


def _shift(module: Any, by: Tensor, through: bool) -> None:
    weight = module.weight
    if through:
        rows = by.to(weight)[None]
        by = (module(rows) - module(torch.zeros_like(rows)))[0]
    bias = by.to(weight) if module.bias is None else module.bias + by.to(module.bias)
    module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)


def _probe(model: Model, site: Site) -> Tensor:
    """A random vector, as long as the activations at a site are."""
    x = model.read(sample(model.module, 2, 5), [site])[site]
    noise = torch.randn(site.width, generator=torch.Generator().manual_seed(0)).to(x)
    return noise / noise.norm() * x.norm(dim=-1).mean().clamp(min=1e-3)


def _copied(module: nn.Module) -> nn.Module:
    """A copy with the same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()


def _is_visit(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(f"{__package__}.")


def _no_place(where: str, *_args: Any, **_kwargs: Any) -> None:
    raise ValueError(
        f"The config of this model has no place for the new biases of {where}: loading would drop them. Save "
        "the model as it was, and what is added with `Intervention.save` or `export_gguf`."
    )


# What is added


def _vectors(
    model: Model, added: Intervention | Mapping[str, Tensor] | Mapping[Site, Tensor]
) -> dict[Site, Tensor]:
    """What is added at each site, in float64."""
    summed: dict[Site, Tensor] = {}
    for add in _adds(added if isinstance(added, Intervention) else Add(added)):
        if others := add.fingerprints - {model.fingerprint}:
            raise ValueError(
                f"What is added was found in another model (fingerprint {min(others)[:8]}) than this one "
                f"({model.fingerprint[:8]})."
            )
        for name, vector in add.directions.items():
            site = model.site(name)
            if vector.shape != (site.width,):
                raise ValueError(
                    f"The vector for {site} has the shape {tuple(vector.shape)}, not ({site.width})."
                )
            by = add.scale * vector.detach().to("cpu", torch.float64)
            if not by.isfinite().all():
                raise ValueError(f"The vector for {site} is not finite.")
            summed[site] = summed[site] + by if site in summed else by
    if not summed:
        raise ValueError("Nothing is added at any site.")
    return dict(sorted(summed.items()))


def _adds(intervention: Intervention) -> list[Add]:
    if isinstance(intervention, Add):
        return [intervention]
    if isinstance(intervention, Chain):
        return _adds(intervention.first) + _adds(intervention.then)
    if isinstance(intervention, Placed):
        if not intervention.placed:
            return _adds(intervention.inner)
        raise ValueError(
            f"{intervention!r} is at some tokens only; biases and control vectors are added at all."
        )
    raise ValueError(
        f"{intervention!r} is no `Add`, and only what is added can be made a bias or a control vector."
    )
