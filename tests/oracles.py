"""Slow, plain versions of what the library does fast, and what the tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from families import fresh, module, tiny
from torch import Tensor, nn

from circuits.effects import Effects, Metric
from interventions.acts import Acts
from interventions.binding import Dictionaries
from interventions.model import Model
from interventions.splice import run
from tasks import Batch, Pair, Task

VOCAB = 64


class PlainSAE(nn.Module):
    """An autoencoder that offers `encode` and `decode` and nothing else."""

    def __init__(self, d_in: int, n_features: int, d_out: int | None = None):
        super().__init__()
        self.register_buffer("W_enc", torch.randn(d_in, n_features) / d_in**0.5)
        self.register_buffer("b_enc", 0.1 * torch.randn(n_features))
        self.register_buffer("W_dec", 0.4 * torch.randn(n_features, d_out or d_in) / (d_out or d_in) ** 0.5)
        self.register_buffer("b_dec", 0.1 * torch.randn(d_out or d_in))

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.W_dec + self.b_dec


class PlainTranscoder(PlainSAE):
    """A transcoder with a skip connection."""

    def __init__(self, d_in: int, n_features: int, d_out: int, reads: str):
        super().__init__(d_in, n_features, d_out)
        self.reads = reads
        self.register_buffer("W_skip", 0.3 * torch.randn(d_in, d_out) / d_in**0.5)

    def skip(self, x: Tensor) -> Tensor:
        return x @ self.W_skip


def tolerance(family: str) -> dict[str, float]:
    """Float64 throughout, or as far as the architecture goes: most cast to float32 somewhere inside."""
    exact = family in ("gpt2", "gpt_neox", "gpt_neox_sequential", "opt", "phi")
    return {"rtol": 1e-8, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-6}


def headless() -> Model:
    """A tiny model without a final norm: its logits are linear in what its last block writes."""
    built = module("gpt2")
    built.transformer.ln_f = nn.Identity()
    return Model.load(built)


def writers(model: Model) -> list[str]:
    """The sites that modules write."""
    return [name for name, site in model.sites.items() if site.side == "out"]


def mixed(model: Model) -> dict[str, PlainSAE]:
    """Autoencoders at every site, those that modules read among them, and transcoders that read these."""
    torch.manual_seed(4)
    found: dict[str, PlainSAE] = {}
    for name, site in model.sites.items():
        reads = name.replace(".", "_in.")
        if reads in model.sites:
            found[name] = PlainTranscoder(model.sites[reads].width, 20, site.width, reads)
        else:
            found[name] = PlainSAE(site.width, 20)
    return {name: dictionary.to(model.dtype) for name, dictionary in found.items()}


def autoencoders(model: Model, *, n_features: int = 40, seed: int = 2) -> dict[str, PlainSAE]:
    torch.manual_seed(seed)
    return {name: PlainSAE(model.sites[name].width, n_features).to(model.dtype) for name in writers(model)}


def transcoders(model: Model, *, n_features: int = 40) -> dict[str, PlainSAE]:
    """Transcoders with a skip connection for the channel mixers, autoencoders on the residual stream."""
    torch.manual_seed(3)
    found: dict[str, PlainSAE] = {}
    for name, site in model.sites.items():
        if name.startswith("mlp."):
            reads = name.replace("mlp.", "mlp_in.")
            found[name] = PlainTranscoder(model.sites[reads].width, n_features, site.width, reads)
        elif name.startswith("resid."):
            found[name] = PlainSAE(site.width, n_features)
    return {name: dictionary.to(model.dtype) for name, dictionary in found.items()}


def batch(n: int = 3, n_pos: int = 5, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, VOCAB, (n, n_pos), generator=generator)
    patch = clean.clone()
    patch[:, 1:3] = torch.randint(3, VOCAB, (n, 2), generator=generator)
    answers = torch.randint(3, 30, (n, 1), generator=generator)
    return Batch(clean, patch, answers, answers + 30)


def task(n: int, n_pos: int = 5, *, paired: bool = True) -> Task:
    """A task over random tokens."""
    rows = batch(n, n_pos)
    pairs = [
        Pair(tuple(clean), tuple(patch) if paired else None, tuple(answer), tuple(foil))
        for clean, patch, answer, foil in zip(
            rows.clean.tolist(), rows.patch.tolist(), rows.answers.tolist(), rows.foils.tolist(), strict=True
        )
    ]
    return Task("random", pairs)


def total_gradients(
    model: Model, batch: Batch, metric: Metric, dictionaries: Dictionaries
) -> tuple[dict[str, Acts], dict[str, Acts]]:
    """Gradients at the leaves of an uncut run, and clean-to-patch differences, by plain autograd."""
    clean = run(model, batch.clean, dictionaries)
    patch = run(model, batch.patch, dictionaries)
    leaves = [t for acts in clean.used.values() for t in (acts.features, acts.error)]
    grads = torch.autograd.grad(metric(clean.logits, batch).sum(), leaves, materialize_grads=True)
    gradients = {
        site: Acts(*pair)
        for site, pair in zip(clean.used, zip(grads[::2], grads[1::2], strict=True), strict=True)
    }
    deltas = {site: (patch.used[site] - acts).map(Tensor.detach) for site, acts in clean.used.items()}
    return gradients, deltas


def slow_edges(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    gradients: Mapping[str, Acts],
    deltas: Mapping[str, Acts],
    *,
    per_position: bool = False,
) -> dict[tuple[str, str], Tensor]:
    """Every edge by one backward pass for each downstream node, example and position: (down, up) matrices.

    As the reference code of Sparse Feature Circuits does it, with the error sources it leaves out.
    """
    cut = run(model, batch.clean, dictionaries, cut=True)
    sites = list(cut.used)
    scores = {site: gradients[site].nodes(cut.computed[site]) for site in sites}
    scores["output"] = metric(cut.logits, batch)[:, None, None]
    found: dict[tuple[str, str], Tensor] = {}
    for down, score in scores.items():
        ups = sites[: sites.index(down)] if down in sites else sites
        leaves = [t for up in ups for t in (cut.used[up].features, cut.used[up].error)]
        if not leaves or not score.requires_grad:
            continue
        for b, s, f in torch.cartesian_prod(*(torch.arange(n) for n in score.shape)).tolist():
            grads = torch.autograd.grad(score[b, s, f], leaves, allow_unused=True, retain_graph=True)
            for up, g, e in zip(ups, grads[::2], grads[1::2], strict=True):
                if g is None and e is None:
                    continue
                acts = cut.used[up]
                pulled = Acts(
                    torch.zeros_like(acts.features) if g is None else g,
                    torch.zeros_like(acts.error) if e is None else e,
                )
                weight = pulled.nodes(deltas[up])[b] / len(batch)
                n_pos, n_up = weight.shape
                shape = (score.shape[1], score.shape[2], n_pos, n_up)
                block = found.setdefault((up, down), weight.new_zeros(shape))
                block[s, f] += weight
    if per_position:
        return found
    return {pair: block.sum((0, 2)) for pair, block in found.items()}


def dense_nodes(effects: Effects) -> dict[str, Tensor]:
    return {site: effects[site].dense() for site in effects}


__all__ = [
    "PlainSAE", "PlainTranscoder", "autoencoders", "batch", "dense_nodes", "fresh", "headless", "mixed",
    "slow_edges", "tiny", "tolerance", "total_gradients", "transcoders", "writers",
]  # fmt: skip
