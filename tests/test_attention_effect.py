"""Attention to chosen tokens, and what interventions change of it."""

import math

import pytest
import torch
from families import FAMILIES, LAYERS, VOCAB, fresh, tiny

from interventions import Add, Model, applied
from interventions.features.attention import attention_patterns, attention_to
from interventions.features.attention_effect import AttentionEffect, attention_effect
from interventions.steering.token_choice import Position

ATTENTIONLESS = {"mamba", "mamba2", "falcon_mamba", "rwkv"}


def tokens(n=3, n_pos=7, seed=0):
    return torch.randint(3, VOCAB, (n, n_pos), generator=torch.Generator().manual_seed(seed))


def masked_softmax(scores):
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1)


def test_patterns_of_gpt2_are_the_softmax_of_queries_times_keys():
    model = tiny("gpt2")
    patterns = attention_patterns(model, tokens())
    entering = model.read(tokens(), [f"attn_in.{i}" for i in range(LAYERS)])
    for i, block in enumerate(model.blocks):
        q, k, _ = block.attn.c_attn(entering[model.site(f"attn_in.{i}")]).chunk(3, -1)
        q, k = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (q, k))
        torch.testing.assert_close(patterns[i], masked_softmax(q @ k.mT / 8**0.5), rtol=1e-9, atol=1e-12)


def test_patterns_of_llama_are_those_of_its_grouped_queries():
    model = tiny("llama")
    patterns = attention_patterns(model, tokens())
    entering = model.read(tokens(), [f"attn_in.{i}" for i in range(LAYERS)])
    position = torch.arange(7, dtype=torch.float64)
    angle = position[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def turned(x):
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    for i, block in enumerate(model.blocks):
        x = entering[model.site(f"attn_in.{i}")]
        q = turned(block.self_attn.q_proj(x).unflatten(-1, (4, 8)).transpose(1, 2))
        k = turned(block.self_attn.k_proj(x).unflatten(-1, (2, 8)).transpose(1, 2))
        k = k.repeat_interleave(2, 1)  # two heads of queries to each of keys
        # transformers works its angles out in float32
        torch.testing.assert_close(patterns[i], masked_softmax(q @ k.mT / 8**0.5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ATTENTIONLESS))
def test_patterns_are_found_in_every_family_with_attention_and_change_nothing(family):
    model = tiny(family)
    configs = {id(c): c for m in model.module.modules() if (c := getattr(m, "config", None)) is not None}
    before = {i: config._attn_implementation for i, config in configs.items()}
    logits = model.logits(tokens())
    patterns = attention_patterns(model, tokens())
    for pattern in patterns.values():
        assert pattern.shape == (3, 4, 7, 7)
        torch.testing.assert_close(pattern.sum(-1).double(), torch.ones(3, 4, 7).double(), rtol=0, atol=1e-5)
        assert not pattern.triu(1).any()
    assert {i: config._attn_implementation for i, config in configs.items()} == before
    assert torch.equal(model.logits(tokens()), logits)
    assert not any(module._forward_hooks for module in model.module.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom"])
def test_patterns_are_those_that_transformers_gives(family):
    model = fresh(family)
    model.module.set_attn_implementation("eager")
    out = model.module(tokens(), output_attentions=True, use_cache=False)
    for i, pattern in attention_patterns(model, tokens()).items():
        torch.testing.assert_close(pattern, out.attentions[i])


@pytest.mark.parametrize("family", sorted(ATTENTIONLESS))
def test_models_without_attention_say_so(family):
    with pytest.raises(ValueError, match="no attention probabilities"):
        attention_patterns(tiny(family), tokens())


def test_in_hybrid_models_layers_without_attention_are_left_out():
    assert list(attention_patterns(tiny("jamba"), tokens())) == [1]
    assert list(attention_patterns(tiny("recurrent_gemma"), tokens())) == [2]


@pytest.mark.parametrize("family", ["gpt2", "llama", "jamba"])
def test_attention_to_tokens_is_summed_whatever_the_batch_and_padding(family):
    model = tiny(family)
    texts = [tuple(tokens(1, n, seed=n)[0].tolist()) for n in (4, 7, 5, 7)]
    found = attention_to(model, texts, lambda ids, _: [0, 2], queries=Position(-2), batch_size=3)
    for i, ids in enumerate(texts):
        for layer, pattern in attention_patterns(model, torch.tensor([ids])).items():
            expected = pattern[0, :, len(ids) - 2, 0] + pattern[0, :, len(ids) - 2, 2]
            torch.testing.assert_close(found[layer][i], expected.double(), rtol=1e-4, atol=1e-6)


def test_over_several_queries_attention_is_the_mean():
    model, row = tiny("llama"), tokens(1)
    found = attention_to(model, row, Position(0), queries=lambda ids, _: slice(-2, None))
    for layer, pattern in attention_patterns(model, row).items():
        torch.testing.assert_close(found[layer][0], pattern[0, :, -2:, 0].mean(-1))


def steering(n, *, seed=0, site="resid.0", scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 32, generator=generator, dtype=torch.float64)
    return [Add({site: v}, scale=scale) for v in vectors / vectors.norm(dim=-1, keepdim=True)]


def test_the_effect_is_the_attention_of_the_steered_model_less_that_of_the_plain_one():
    model, texts = tiny("llama"), tokens(3)
    one, *controls = steering(4)
    effect = attention_effect(model, texts, one, controls, to=Position(1))
    plain = attention_to(model, texts, Position(1))
    for i, each in enumerate([one, *controls]):
        with applied(model, each):
            steered = attention_to(model, texts, Position(1))
        for layer in range(LAYERS):
            found = effect.steered[layer][0] if i == 0 else effect.control[layer][i - 1]
            torch.testing.assert_close(found, steered[layer] - plain[layer])
            torch.testing.assert_close(effect.before[layer], plain[layer])
    torch.testing.assert_close(effect.change()[1], effect.steered[1][0].mean(0))


def test_heads_before_what_is_steered_take_no_part_in_the_correction():
    model = tiny("llama")
    one, *controls = steering(6)
    effect = attention_effect(model, tokens(), one, controls, to=Position(1))
    assert effect.p()[0].isnan().all() and effect.q()[0].isnan().all()
    assert not effect.p()[1:].isnan().any()
    assert len(effect.heads(level=1)) == 8


def made(steered, control):
    """An effect with given changes, (intervention item head), in one layer."""
    return AttentionEffect({0: torch.zeros(steered.shape[1:])}, {0: steered}, {0: control})


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("less", [False, True])
def test_of_interventions_like_the_controls_one_in_twenty_is_significant(k, less):
    generator = torch.Generator().manual_seed(0)
    # what texts have in common is much, and must not be taken for evidence
    of_text = 3 * torch.randn(1, 20, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(k + 10, 1, 4000, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(k + 10, 20, 4000, generator=generator, dtype=torch.float64)
    changes = of_text + own + noise
    p = made(changes[:k], changes[k:]).p(less=less)
    for level in (0.01, 0.05, 0.2):
        share = (p <= level).double().mean().item()
        error = (level * (1 - level) / 4000) ** 0.5
        # Welch's test of three against ten keeps its level to within a fifth
        assert abs(share - level) < 4 * error + (0.2 * level if k > 1 else 0)


def test_the_rate_of_false_discoveries_is_kept_and_true_effects_are_found():
    generator = torch.Generator().manual_seed(1)
    false, true = 0, 0
    for _ in range(50):
        changes = torch.randn(13, 8, 100, generator=generator, dtype=torch.float64)
        changes[:3, :, :10] += 3.0
        found = {h.head for h in made(changes[:3], changes[3:]).heads(level=0.1)}
        false += sum(head >= 10 for head in found) / max(1, len(found))
        true += sum(head < 10 for head in found) / 10
    assert false / 50 < 0.12
    assert true / 50 > 0.9


def test_single_interventions_are_tested_by_the_t_of_a_new_observation():
    from scipy.stats import ttest_ind

    generator = torch.Generator().manual_seed(2)
    changes = torch.randn(11, 5, 6, generator=generator, dtype=torch.float64)
    means = changes.mean(1)
    p = made(changes[:1], changes[1:]).p()[0]
    # which is Student's test of a sample of one
    expected = ttest_ind(means[:1].numpy(), means[1:].numpy(), alternative="greater").pvalue
    torch.testing.assert_close(p, torch.as_tensor(expected))
    several = made(changes[:3], changes[3:])
    expected = ttest_ind(
        means[:3].numpy(), means[3:].numpy(), alternative="less", equal_var=False
    ).pvalue  # fmt: skip
    torch.testing.assert_close(several.p(less=True)[0], torch.as_tensor(expected))


def test_heads_are_listed_with_their_numbers():
    changes = torch.zeros(5, 2, 3, dtype=torch.float64)
    changes[1:, :, :] = torch.tensor([-1e-3, 1e-3, -2e-3, 2e-3])[:, None, None]
    changes[0, :, 1] = torch.tensor([0.4, 0.6])
    effect = made(changes[:1], changes[1:])
    (head,) = effect.heads(level=0.05)
    assert str(head) == "L0H1"
    assert head.change == pytest.approx(0.5) and head.error == pytest.approx(0.1)
    assert not effect.heads(level=0.05, less=True)
    assert effect.table().splitlines()[1].startswith("L0H1")
    assert repr(effect) == "AttentionEffect(1 intervention and 4 controls, 2 texts, 1 layers of 3 heads)"


def test_what_cannot_be_measured_is_said():
    model, (one, *controls) = tiny("gpt2"), steering(4)
    with pytest.raises(ValueError, match="1 controls: give at least"):
        attention_effect(model, tokens(), one, controls[:1], to=Position(0))
    with pytest.raises(ValueError, match="out of range"):
        attention_effect(model, tokens(), one, controls, to=Position(9))
    with pytest.raises(ValueError, match="no texts"):
        attention_to(model, [], Position(0))
    with pytest.raises(TypeError, match="not one string"):
        attention_effect(model, "Once", one, controls, to=Position(0))
    with pytest.raises(ValueError, match="two or more"):
        attention_patterns(model, tokens(2, 1))


def test_a_model_that_keeps_its_attention_to_itself_is_refused():
    class Still(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(16, 8)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
            self.head = torch.nn.Linear(8, 16)

        def forward(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    from interventions import Layout

    model = Model.load(Still(), layout=Layout(blocks="blocks", embed="embed"))
    with pytest.raises(ValueError, match="no attention probabilities"):
        attention_patterns(model, tokens(2, 3) % 16)
