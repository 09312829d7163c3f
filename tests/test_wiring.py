import functools

import pytest
import torch
from families import EVERY_FAMILY
from oracles import (
    autoencoders,
    batch,
    fresh,
    mixed,
    slow_edges,
    tiny,
    tolerance,
    total_gradients,
    transcoders,
    writers,
)

from circuits.attribution import attribution_patching
from circuits.wiring import OUTPUT, edges
from interventions.acts import Identity
from interventions.dictionaries import ReLU, SparseCoder
from tasks import LogitDifference

metric = LogitDifference()
KINDS = {"autoencoders": autoencoders, "transcoders": transcoders, "mixed": mixed}


def everything(model, dictionaries, n_pos=None):
    widths = {}
    for name, d in dictionaries.items():
        read = model.site(getattr(d, "reads", None) or name)
        widths[name] = d.encode(torch.zeros(1, read.width, dtype=model.dtype)).shape[-1] + 1
    shape = () if n_pos is None else (n_pos,)
    return {name: torch.ones(*shape, width, dtype=torch.bool) for name, width in widths.items()}


def assert_same_edges(found, slow, **tolerance):
    for pair in found.keys() | slow.keys():
        if pair not in found:
            assert not slow[pair].any(), pair
        elif pair not in slow:
            assert not found[pair].to_dense().any(), pair
        else:
            torch.testing.assert_close(
                found[pair].to_dense().reshape(slow[pair].shape), slow[pair], **tolerance
            )


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("kind", KINDS)
def test_edges_of_every_node_add_up_to_its_effect(family, kind):
    model = tiny(family)
    dictionaries = KINDS[kind](model)
    if not dictionaries:
        pytest.skip("no site for it")
    effects = attribution_patching(model, batch(), metric, dictionaries)
    found = edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries))
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), **tolerance(family))


@functools.cache
def one_by_one(family, kind):
    """Dictionaries, and the edges between positions by one backward pass for each node."""
    model = tiny(family)
    dictionaries = KINDS[kind](model) if kind == "mixed" else KINDS[kind](model, n_features=10)
    if kind == "mixed":
        dictionaries = {name: d for name, d in dictionaries.items() if not name.endswith(".2")}
    if not dictionaries:
        return dictionaries, {}
    found = total_gradients(model, SHORT, metric, dictionaries)
    return dictionaries, slow_edges(model, SHORT, metric, dictionaries, *found, per_position=True)


SHORT = batch(n=2, n_pos=4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mamba"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_position", [False, True])
def test_edges_are_those_of_one_backward_pass_for_each_node(family, kind, per_position):
    model, prompts = tiny(family), SHORT
    dictionaries, slow = one_by_one(family, kind)
    if not dictionaries:
        pytest.skip("no site for it")
    if not per_position:
        slow = {pair: block.sum((0, 2)) for pair, block in slow.items()}
    effects = attribution_patching(model, prompts, metric, dictionaries)
    kept = everything(model, dictionaries, 4 if per_position else None)
    assert_same_edges(edges(model, prompts, metric, dictionaries, effects, kept), slow, **tolerance(family))


def test_neurons_are_wired_like_any_dictionary():
    model = tiny("llama")
    dictionaries = {name: Identity() for name in writers(model)}
    prompts = batch(n=2, n_pos=4)
    effects = attribution_patching(model, prompts, metric, dictionaries)
    slow = slow_edges(
        model, prompts, metric, dictionaries, *total_gradients(model, prompts, metric, dictionaries)
    )
    assert_same_edges(
        edges(model, prompts, metric, dictionaries, effects, everything(model, dictionaries)), slow
    )


def test_edges_among_chosen_nodes_are_a_part_of_all_edges():
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    effects = attribution_patching(model, batch(), metric, dictionaries)
    kept = everything(model, dictionaries)
    whole = edges(model, batch(), metric, dictionaries, effects, kept)
    torch.manual_seed(0)
    some = {site: torch.rand(mask.shape) < 0.3 for site, mask in kept.items()}
    part = edges(model, batch(), metric, dictionaries, effects, some)
    some[OUTPUT] = torch.ones(1, dtype=torch.bool)
    for (up, down), matrix in part.items():
        inside = some[down][:, None] & some[up]
        torch.testing.assert_close(matrix.to_dense(), whole[up, down].to_dense() * inside)


class Doubled(torch.autograd.Function):
    """Like a fused kernel: its backward pass cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(2 * gradient.numpy())


def test_operations_without_batched_gradients_are_gone_through_slot_by_slot(monkeypatch):
    model = fresh("gpt2")
    dictionaries = autoencoders(model)
    forward = model.blocks[1].mlp.forward
    found = []
    for double in (lambda x: 2 * x, Doubled.apply):
        monkeypatch.setattr(model.blocks[1].mlp, "forward", lambda x, double=double: double(forward(x)))
        effects = attribution_patching(model, batch(), metric, dictionaries)
        found.append(edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries)))
    for pair in found[0]:
        torch.testing.assert_close(found[1][pair].to_dense(), found[0][pair].to_dense())


def test_an_autoencoder_with_a_skip_connection_of_its_own_is_conserved():
    model = tiny("gpt2")
    torch.manual_seed(0)
    dictionaries = {}
    for name in ("embed", "resid.0", "resid.1"):
        coder = SparseCoder.random(32, 40, seed=len(dictionaries))
        parts = {"W_enc": coder.W_enc, "b_enc": coder.b_enc, "W_dec": coder.W_dec, "b_dec": coder.b_dec}
        dictionaries[name] = SparseCoder(
            **parts, activation=ReLU(), W_skip=0.1 * torch.randn(32, 32)
        ).double()
    effects = attribution_patching(model, batch(), metric, dictionaries)
    found = edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries))
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0))
