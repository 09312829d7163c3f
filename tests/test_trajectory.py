"""Trajectories against all logits of all sites at once."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from families import EVERY_FAMILY, fresh, tiny
from oracles import tolerance
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from interventions import Add, Model, Where, applied, span
from interventions.lenses import (
    LogitLens,
    Trajectory,
    Translator,
    TunedLens,
    input_attribution,
    lens_sites,
    reading,
    trajectories,
    trajectory,
)
from interventions.lenses.tracing import token_id
from interventions.recurrence import AblateState

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
RECURRENT = ("mamba", "rwkv", "recurrent_gemma", "qwen3_next")


def shaken(model, sites=None):
    """A tuned lens with random maps."""
    lens, generator = TunedLens.untrained(model, sites, dtype=model.dtype), torch.Generator().manual_seed(1)
    maps = {}
    for site, t in lens.translators.items():
        weight, bias = (
            torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (t.weight, t.bias)
        )
        maps[site] = Translator(0.1 * weight.to(t.weight), 0.1 * bias.to(t.bias))
    return TunedLens(model, maps)


def everything(lens, prompt):
    """Logits of every site and position, in float64: what must never be held."""
    model, tokens = lens.model, torch.tensor([prompt])
    acts = model.read(tokens, lens.sites)
    rows = [lens.logits(site, acts[model.site(site)].reshape(len(prompt), -1)) for site in lens.sites]
    return torch.stack([*rows, model.logits(tokens)[0]]).double()


def compared(found, logits, prompt, close):
    p, following = logits.softmax(-1), torch.tensor(prompt[1:])
    plain = {
        "entropy": torch.special.entr(p).sum(-1),
        "kl": (torch.xlogy(p[-1:], p[-1:]) - torch.xlogy(p[-1:], p)).sum(-1),
        "max_probability": p.amax(-1),
    }
    for name, value in plain.items():
        torch.testing.assert_close(found[name].double(), value, **close)
    surprise = -p[:, :-1].gather(-1, following.expand(len(p), -1)[..., None])[..., 0].log()
    torch.testing.assert_close(found["cross_entropy"][:, :-1].double(), surprise, **close)
    order = logits[:, :-1].argsort(-1, descending=True)
    ranks = 1 + (order == following[:, None]).int().argmax(-1)
    assert torch.equal(found["rank"][:, :-1].long(), ranks)
    assert found["cross_entropy"][:, -1].isnan().all() and found["rank"][:, -1].isnan().all()
    chances = p.sort(-1, descending=True).values[..., : found.top_tokens.shape[-1]]
    torch.testing.assert_close(found.top_probabilities.double(), chances, **close)
    torch.testing.assert_close(p.gather(-1, found.top_tokens), chances, **close)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_is_streamed_is_what_all_logits_at_once_give(family):
    model = tiny(family)
    lens = shaken(model)
    logits = everything(lens, PROMPT)
    for at_once in (None, 3):
        found = trajectory(lens, PROMPT, k=4, targets=[7, 2], at_once=at_once)
        assert found.sites == (*lens.sites, "output")
        compared(found, logits, PROMPT, tolerance(family))
        targets = logits.log_softmax(-1)[..., [7, 2]]
        torch.testing.assert_close(found.target_log_probs.double(), targets, **tolerance(family))
        torch.testing.assert_close(
            found.difference([7], [2]), found.log_prob(7) - found.log_prob(2), equal_nan=True
        )
    assert (found["kl"][-1] == 0).all()


@pytest.mark.parametrize("family", ["opt", "gemma2", "mamba"])
def test_sub_layers_are_read_too(family):
    model = tiny(family)
    stems = ("attn", "mixer", "mlp", "mid")
    named = [f"{stem}.{i}" for i in range(2) for stem in stems]
    sites = [name for name in named if name in model.sites or (name.startswith("mid") and family != "mamba")]
    lens = LogitLens(model, sites)
    compared(trajectory(lens, PROMPT), everything(lens, PROMPT), PROMPT, tolerance(family))


@pytest.mark.parametrize("family", ["llama", *RECURRENT])
def test_an_intervention_shows_downstream_and_nowhere_upstream(family):
    model = tiny(family)
    lens = shaken(model, lens_sites(model))
    clean = trajectory(lens, PROMPT)
    with applied(model, Add({"resid.1": torch.linspace(-3, 3, model.width, dtype=torch.float64)})):
        changed = lens.trajectory(PROMPT)
        logits = everything_inside(lens, PROMPT)
    compared(changed, logits, PROMPT, tolerance(family))
    for name in ("entropy", "max_probability", "cross_entropy"):
        assert torch.equal(clean[name][:2].nan_to_num(), changed[name][:2].nan_to_num())
        assert ((clean[name] - changed[name])[2:].abs() > 1e-6)[:, :-1].all()
    # They are compared with what the changed model says.
    assert (clean["kl"][0] != changed["kl"][0]).all() and (changed["kl"][-1] == 0).all()


def everything_inside(lens, prompt):
    """The same of a changed pass, with the endings of the model as it is."""
    model, tokens, seen = lens.model, torch.tensor([prompt]), {}

    def keep(site, x):
        seen[site.name] = x
        return x

    with model.visiting(lens.sites, keep):
        output = model.logits(tokens)[0]
    with model.apart():
        rows = [lens.logits(site, seen[site].reshape(len(prompt), -1)) for site in lens.sites]
    return torch.stack([*rows, output]).double()


def test_a_changed_state_is_read_whole():
    model = tiny("mamba")
    lens = LogitLens(model)
    clean = trajectory(lens, PROMPT)
    with applied(model, AblateState(before=Where(prompt=span(3, None)))):
        changed = trajectory(lens, PROMPT)
    assert changed["entropy"].shape == clean["entropy"].shape
    assert torch.equal(clean["entropy"][0], changed["entropy"][0])
    assert not torch.allclose(clean["entropy"][-1], changed["entropy"][-1])


class Held(TorchDispatchMode):
    """How many numbers with an axis of the vocabulary's size are held at most at a time."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.now, self.most, self.largest = vocab, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.ndim and x.shape[-1] == self.vocab:
                self.largest = max(self.largest, x.numel())
                self.now[x.untyped_storage()._cdata] = (x.untyped_storage().nbytes(), weakref.ref(x))
        alive = {key: (size, ref) for key, (size, ref) in self.now.items() if ref() is not None}
        self.now = alive
        self.most = max(self.most, sum(size for size, _ in alive.values()) // 8)
        return out


def test_never_are_the_logits_of_all_sites_held():
    vocab, layers, length = 3001, 12, 24
    config = GPT2Config(vocab_size=vocab, n_embd=8, n_layer=layers, n_head=2, n_positions=64)
    model = Model.load(GPT2LMHeadModel(config).double())
    lens = LogitLens(model)
    prompt = torch.arange(length)
    trajectory(lens, prompt)  # what is tried out once
    with Held(vocab) as held:
        trajectory(lens, prompt, at_once=2)
    with Held(vocab) as plain:
        everything(lens, prompt.tolist())
    assert plain.most >= layers * length * vocab
    assert held.largest == length * vocab  # of the model's own pass
    assert held.most <= (length + 20) * vocab  # and a few of two positions


def test_it_prints_selects_saves_and_comes_back(tmp_path):
    from circuits import embedded

    model = embedded.model()
    found = trajectory(LogitLens(model), "The friends that the artist watches", targets=[" are", " is"])
    assert found.words[1:3] == (" The", " friends")
    line = next(line for line in str(found).splitlines() if line.startswith("output"))
    assert line.split()[1] == found.texts[int(found.top_tokens[-1, 0, 0])].strip()
    assert found.top_texts("output", -1)[0][1] == found.top_probabilities[-1, -1, 0]
    assert found.log_prob(" are")[-1, -1] > found.log_prob(" is")[-1, -1]
    found.save(tmp_path)
    back = Trajectory.load(tmp_path)
    assert str(back) == str(found) and back.table("kl") == found.table("kl")
    assert torch.equal(back.difference([" are"], [" is"]), found.difference([" are"], [" is"]))
    part = back.select(sites=["resid.1", "output"], positions=slice(-2, None))
    assert part["kl"].shape == (2, 2) and part.words == found.words[-2:] and part.positions.tolist() == [5, 6]
    assert torch.equal(part["entropy"], found["entropy"][2:, -2:])
    assert part.top_texts("output", 0) == found.top_texts("output", -2)
    long = found.columns()
    assert {len(column) for column in long.values()} == {4 * 7} and "log_prob  are" in long
    (tmp_path / next(tmp_path.glob("*.safetensors")).name).write_bytes(b"")
    with pytest.raises(ValueError, match="does not match its checksum"):
        Trajectory.load(tmp_path)


def test_long_prompts_are_cut_in_tables_and_strange_characters_shown():
    found = trajectory(LogitLens(tiny("gpt2")), list(range(1, 30)))
    assert str(found).splitlines()[0].startswith("...") and "<29>" in str(found) and "<19>" not in str(found)


def test_models_in_half_precision_are_read_in_single():
    lens = LogitLens(tiny("llama", torch.bfloat16))
    found = trajectory(lens, PROMPT)
    logits = everything(lens, PROMPT)
    compared(found, logits, PROMPT, {"rtol": 1e-5, "atol": 1e-5})
    assert {x.dtype for x in found.statistics.values()} == {torch.float32}


def test_some_positions_are_read_alone():
    lens = shaken(tiny("llama"))
    found, whole = trajectory(lens, PROMPT, positions=slice(-3, None)), trajectory(lens, PROMPT)
    part = whole.select(positions=slice(-3, None))
    assert found.words == part.words and torch.equal(found.positions, part.positions)
    for name in found.statistics:
        torch.testing.assert_close(found[name], part[name], equal_nan=True)
    with pytest.raises(ValueError, match="No token is left of 8"):
        trajectory(lens, PROMPT, positions=slice(8, None))


def test_a_target_is_told_as_it_reads_also_where_a_tokenizer_puts_a_space_before_every_text():
    words = {0: " ", 1: " he", 2: "s"}

    def encode(text, add_special_tokens):
        return {"he": [1], " he": [0, 1], " s": [0, 2], "s": [0, 2], "he s": [1, 0, 2]}[text]

    model = fresh("llama")
    model.tokenizer = SimpleNamespace(
        encode=encode, decode=lambda ids: "".join(words[i] for i in ids).removeprefix(" ")
    )
    assert token_id(model, "he", 64) == token_id(model, " he", 64) == 1
    assert input_attribution(LogitLens(model), [1, 2], "resid.0", token=" he").token == 1
    with pytest.raises(ValueError, match="' s' is 2 tokens"):
        token_id(model, " s", 64)


def test_several_prompts_are_read_one_by_one():
    lens = LogitLens(tiny("llama"))
    some = trajectories(lens, [PROMPT, PROMPT[:3]], progress=False)
    assert torch.equal(some[0]["entropy"], trajectory(lens, PROMPT)["entropy"])
    assert len(some[1].tokens) == 3


def test_wrong_inputs_are_named():
    model = tiny("llama")
    lens = LogitLens(model)
    found = trajectory(lens, PROMPT, targets=[5])
    with pytest.raises(TypeError, match="no tokenizer"):
        trajectory(lens, "a text")
    with pytest.raises(TypeError, match="not a list of texts"):
        trajectory(lens, ["a text"])
    with pytest.raises(TypeError, match="sequence of prompts"):
        trajectories(lens, "a text")
    with pytest.raises(ValueError, match=r"give tokens \(pos\)"):
        trajectory(lens, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one token"):
        trajectory(lens, [])
    with pytest.raises(ValueError, match="There is no token 64: the vocabulary has 64"):
        trajectory(lens, [3, 64])
    with pytest.raises(ValueError, match="There is no token 99"):
        trajectory(lens, PROMPT, targets=[99])
    with pytest.raises(ValueError, match="k=0"):
        trajectory(lens, PROMPT, k=0)
    with pytest.raises(LookupError, match="No statistic 'kI'"):
        found["kI"]
    with pytest.raises(LookupError, match=r"'resid.7' was read; there are embed"):
        found.select(sites=["resid.7"])
    with pytest.raises(ValueError, match="No site or token is left"):
        found.select(positions=slice(100, None))
    with pytest.raises(LookupError, match="6 is no target"):
        found.log_prob(6)
    with pytest.raises(LookupError, match=r"No site 'resid.9' was read"):
        reading(lens, PROMPT).logits("resid.9")
