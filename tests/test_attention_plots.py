"""Mentions of entities, and the picture of what heads make of them."""

import pytest
import torch

from circuits import embedded
from circuits.attention_plots import plot_heads
from interventions.features.attention_effect import AttentionEffect
from interventions.features.mention import Mention


def tokens(text):
    tokenizer = embedded.model().tokenizer
    return tuple(tokenizer.encode(text)), tokenizer


def test_a_mention_is_the_last_one_of_any_of_the_names():
    ids, tokenizer = tokens("The boy near the cars near the girl")
    words = [tokenizer.decode([i]).strip() for i in ids]
    assert [words[i] for i in Mention(("boy", "girl"))(ids, tokenizer)] == ["girl"]
    assert [words[i] for i in Mention(("boy", "the cars"))(ids, tokenizer)] == ["the", "cars"]
    assert [words[i] for i in Mention(("the cars",), end=True)(ids, tokenizer)] == ["cars"]
    assert [words[i] for i in Mention("boy")(ids, tokenizer)] == ["boy"]  # type: ignore[arg-type]


def test_of_names_that_end_together_the_longest_is_mentioned():
    ids, tokenizer = tokens("The small boy near the cars")
    found = Mention(("cars", "the cars"))(ids, tokenizer)
    assert [tokenizer.decode([ids[i]]).strip() for i in found] == ["the", "cars"]


def test_a_text_without_a_mention_is_refused():
    ids, tokenizer = tokens("The boy")
    with pytest.raises(ValueError, match="mentions none"):
        Mention(("girl",))(ids, tokenizer)
    with pytest.raises(ValueError, match="at least one name"):
        Mention(())


def effect(k=3):
    generator = torch.Generator().manual_seed(0)
    change = 0.01 * torch.randn(13, 4, 3, 5, generator=generator, dtype=torch.float64)
    change[:, :, 0] = 0  # nothing reaches the first layer
    change[:3, :, 1, 2] += 0.4
    change[:3, :, 2, 4] -= 0.4
    return AttentionEffect(
        {layer: torch.zeros(4, 5) for layer in range(3)},
        {layer: change[:k, :, layer] for layer in range(3)},
        {layer: change[3:, :, layer] for layer in range(3)},
    )


@pytest.mark.parametrize(("suffix", "k"), [("svg", 1), ("svg", 3), ("png", 3)])
def test_the_picture_of_heads_is_the_same_each_time_and_marks_what_is_significant(tmp_path, suffix, k):
    one = plot_heads(effect(k), tmp_path / f"one.{suffix}", title="Attention").read_bytes()
    assert plot_heads(effect(k), tmp_path / f"other.{suffix}", title="Attention").read_bytes() == one
    if suffix == "svg":
        none = plot_heads(effect(k), tmp_path / "none.svg", title="Attention", level=0).read_text()
        marked = plot_heads(effect(k), tmp_path / "some.svg", title="Attention", level=1e-4).read_text()
        assert marked.count('<g id="patch') == none.count('<g id="patch') + 2
