from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCAB, WIDTH, tiny
from scipy import stats
from torch import Tensor, nn

from circuits import embedded
from interventions import Add, Model, applied
from interventions.features import AttentionEffect, attention_effect, attentions, orthogonalised
from interventions.permanent import _hooks, _is_visit
from interventions.steering import Position

ATTENDING = {
    "gpt_neo": [0, 1, 2, 3], "recurrent_gemma": [2], "jamba": [1], "zamba2": [1, 3], "qwen3_next": [2],
} | {name: [0, 1, 2] for name in (
    "gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma",
    "gemma2", "gemma3_text", "cohere", "phi", "opt", "bloom", "mixtral", "falcon_h1",
)}  # fmt: skip
NOT = ["mamba", "mamba2", "falcon_mamba", "rwkv"]


def tokens(rows: int = 2, pos: int = 6) -> Tensor:
    return torch.randint(3, VOCAB, (rows, pos), generator=torch.Generator().manual_seed(5))


def vectors(n: int, scale: float = 3.0) -> list[Add]:
    rows = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [Add({"resid.0": row}, scale=scale) for row in rows]


def by_hand(name: str, layer: int) -> Tensor:
    """softmax(QK) of one layer, from its weights and what enters it."""
    model = tiny(name)
    config = model.module.config
    x = model.read(tokens(), [f"attn_in.{layer}"])[model.site(f"attn_in.{layer}")]
    batch, pos, width = x.shape
    size = width // 4
    block = model.blocks[layer]
    if name == "gpt2":
        q, k, _ = block.attn.c_attn(x).split(width, dim=-1)
        q, k = (t.view(batch, pos, 4, size).transpose(1, 2) for t in (q, k))
    else:
        attention = block.self_attn
        q = attention.q_proj(x).view(batch, pos, 4, size).transpose(1, 2)
        k = attention.k_proj(x).view(batch, pos, 2, size).transpose(1, 2)
        theta = config.rope_parameters["rope_theta"]
        angle = torch.arange(pos)[:, None] * theta ** -(torch.arange(0, size, 2).double() / size)
        turned = []
        for t in (q, k):
            first, second = t[..., : size // 2], t[..., size // 2 :]
            turned.append(
                torch.cat(
                    [
                        first * angle.cos() - second * angle.sin(),
                        second * angle.cos() + first * angle.sin(),
                    ],
                    dim=-1,
                )
            )
        q, k = turned[0], turned[1].repeat_interleave(2, dim=1)
    scores = (q @ k.transpose(-1, -2)) / size**0.5
    future = torch.ones(pos, pos).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def test_families_attend_or_do_not() -> None:
    assert set(ATTENDING) | set(NOT) == set(FAMILIES)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_probabilities_are_softmax_of_queries_times_keys(family: str, layer: int) -> None:
    found = attentions(tiny(family), tokens())[layer]
    torch.testing.assert_close(found.double(), by_hand(family, layer).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ATTENDING)
def test_every_layer_that_attends_is_found_and_the_model_is_left_as_it_was(family: str) -> None:
    model = tiny(family)
    kind, before = model.module.config._attn_implementation, model.logits(tokens())
    found = attentions(model, tokens())
    assert list(found) == ATTENDING[family]
    for x in found.values():
        assert x.shape == (2, 4, 6, 6)
        torch.testing.assert_close(x.sum(-1), torch.ones_like(x[..., 0]), rtol=1e-5, atol=1e-5)
        assert (x.triu(1) == 0).all()
    assert model.module.config._attn_implementation == kind
    assert not [hook for m in model.module.modules() for hook in _hooks(m) if _is_visit(hook)]
    assert torch.equal(model.logits(tokens()), before)


@pytest.mark.parametrize("family", NOT)
def test_models_that_do_not_attend_say_so(family: str) -> None:
    model = tiny(family)
    with pytest.raises(ValueError, match="gives no attention probabilities"):
        attentions(model, tokens())
    assert torch.isfinite(model.logits(tokens())).all()


def test_a_module_of_ones_own_says_so() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, 8)
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
            self.head = nn.Linear(8, VOCAB)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    with pytest.raises(ValueError, match="Own gives no attention probabilities"):
        attentions(Model.load(Own()), tokens())


def test_a_copy_made_after_looking_attends_by_itself() -> None:
    model = tiny("llama")
    before = attentions(model, tokens())
    copy = orthogonalised(model, torch.randn(WIDTH, generator=torch.Generator().manual_seed(2)))
    after = attentions(copy, tokens())
    assert list(after) == [0, 1, 2] and not torch.allclose(after[1], before[1])
    assert all(torch.equal(x, before[i]) for i, x in attentions(model, tokens()).items())


def test_padding_changes_nothing() -> None:
    model = tiny("llama")
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    found = attentions(model, tokens(), mask)[1]
    alone = attentions(model, tokens()[1:, :4])[1]
    torch.testing.assert_close(found[1:, :, :4, :4], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "jamba"])
def test_effects_are_differences_of_attention(family: str) -> None:
    model = tiny(family)
    steered, control = vectors(2)
    texts = [tuple(row) for row in tokens().tolist()] + [tuple(tokens(1, 4)[0].tolist())]

    def to(ids: tuple[int, ...], _tokenizer: object) -> list[int]:
        return [0, len(ids) - 2]

    effect = attention_effect(model, texts, steered, [control], to=to, batch_size=2, progress=False)
    assert effect.layers == tuple(ATTENDING[family])
    for i, text in enumerate(texts):
        before = attentions(model, torch.tensor([text]))
        for add, change in ((steered, effect.change[0, i]), (control, effect.control[0, i])):
            with applied(model, add):
                after = attentions(model, torch.tensor([text]))
            for row, layer in enumerate(effect.layers):
                moved = (after[layer] - before[layer])[0, :, -1, [0, len(text) - 2]].sum(-1)
                torch.testing.assert_close(change[row], moved.double(), rtol=1e-4, atol=1e-6)
    first = effect.change[:, :, effect.layers.index(0)] if 0 in effect.layers else torch.zeros(1)
    assert (first == 0).all()


def test_of_several_queries_the_mean_is_taken() -> None:
    model, (add,) = tiny("gpt2"), vectors(1)
    text = tuple(tokens(1)[0].tolist())
    effect = attention_effect(model, [text], add, to=Position(1), of=lambda ids, _t: [3, 5], progress=False)
    with applied(model, add):
        after = attentions(model, torch.tensor([text]))[2][0, :, [3, 5], 1].mean(-1)
    before = attentions(model, torch.tensor([text]))[2][0, :, [3, 5], 1].mean(-1)
    torch.testing.assert_close(effect.change[0, 0, 2], (after - before).double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(effect.before[0, 2], before.double(), rtol=1e-6, atol=1e-9)


def test_significance_is_that_of_scipy() -> None:
    model = tiny("llama")
    steered, controls = vectors(7)[:3], vectors(7)[3:]
    texts = [tuple(row) for row in tokens(5).tolist()]
    effect = attention_effect(model, texts, steered, controls, to=Position(1), progress=False)
    for made, alternative in ((effect.raised(), "greater"), (effect.lowered(), "less")):
        expected = stats.ttest_ind(
            effect.change.flatten(0, 1).numpy(), effect.control.flatten(0, 1).numpy(),
            equal_var=False, alternative=alternative,
        )  # fmt: skip
        torch.testing.assert_close(made.t[1:], torch.tensor(expected.statistic)[1:])
        torch.testing.assert_close(made.p[1:], torch.tensor(expected.pvalue)[1:])
        q = stats.false_discovery_control(expected.pvalue[1:].flatten())
        torch.testing.assert_close(made.q[1:].flatten(), torch.tensor(q))
        assert made.p[0].isnan().all() and (made.t[0] == 0).all()
        assert all(layer > 0 for layer, _ in made.significant(1.0)) and len(made.significant(1.0)) == 8
    over = effect.over_texts()
    expected = stats.ttest_ind(
        effect.change.mean(1).numpy(), effect.control.mean(1).numpy(), equal_var=False, alternative="greater"
    )
    torch.testing.assert_close(over.raised().p[1:], torch.tensor(expected.pvalue)[1:])


def test_a_head_that_is_moved_is_found_and_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(6, 2, 3, generator=generator)
    change, control = (0.05 * torch.randn(n, 6, 2, 3, generator=generator) for n in (3, 10))
    change[:, :, 1, 2] += 0.3
    effect = AttentionEffect(before, change, control, (4, 7))
    assert effect.raised().significant(0.01) == ((7, 2),)
    assert (7, 2) not in effect.lowered().significant(0.05)
    assert effect.over_texts().raised().significant(0.05)[0] == (7, 2)
    assert effect.table(1).splitlines()[1].startswith("L7H2")


def test_too_few_observations_are_refused() -> None:
    model, adds = tiny("gpt2"), vectors(3)
    text = tuple(tokens(1)[0].tolist())
    effect = attention_effect(model, [text], adds[0], adds[1:], to=Position(0), progress=False)
    with pytest.raises(ValueError, match="at least two observations"):
        effect.raised()
    with pytest.raises(ValueError, match=r"text 0, tokens `to`: position 9 is out of range"):
        attention_effect(model, [text], adds[0], to=Position(9), progress=False)
    with pytest.raises(ValueError, match="no intervention"):
        attention_effect(model, [text], [], to=Position(0), progress=False)


def test_the_head_that_fetches_the_number_attends_to_the_subject() -> None:
    model = embedded.model()
    texts = [str(pair.clean) for pair in embedded.task("across_rc", n=10, seed=3).pairs]
    ids = torch.tensor([model.tokenizer.encode(text) for text in texts])
    assert attentions(model, ids)[2][:, 0, -1, 2].min() > 0.9
