"""Sequence-classification heads of transformers as models: logits of a whole text, wherever it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from families import VOCAB, WIDTH, seeded
from oracles import autoencoders, dense_nodes, mixed, tolerance, total_gradients
from torch import Tensor, nn

from circuits import Evaluation, find
from circuits.attribution import attribution_patching, exact_patching, gauss_legendre, integrated_gradients
from circuits.wiring import edges
from interventions import Ablate, Model, applied
from interventions.lenses import LogitLens
from interventions.probing import Probe
from tasks import Batch, LogitDifference
from tasks.labelled import LabelledSet, LabelledText

_ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_size: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 3, "intermediate_size": 48,
    "num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 3, **_ids,
}  # fmt: skip


def _build(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**values))


CLASSIFIERS = {
    "gpt2": _build("GPT2ForSequenceClassification", "GPT2Config", vocab_size=VOCAB, n_embd=WIDTH, n_layer=3,
                   n_head=4, n_positions=64, num_labels=3, **_ids),
    "gpt_neox": _build("GPTNeoXForSequenceClassification", "GPTNeoXConfig", **_size),
    "llama": _build("LlamaForSequenceClassification", "LlamaConfig", num_key_value_heads=2, **_size),
    "jamba": _build("JambaForSequenceClassification", "JambaConfig", num_experts=2, num_experts_per_tok=1,
                    attn_layer_period=3, attn_layer_offset=1, mamba_d_state=8, num_key_value_heads=2,
                    **_size),
    "bert": _build("BertForSequenceClassification", "BertConfig", **_size),
}  # fmt: skip
CAUSAL = [name for name in CLASSIFIERS if name != "bert"]
metric = LogitDifference()


def classifier(family: str, **changes: Any) -> Model:
    built = seeded(CLASSIFIERS[family])
    for name, value in changes.items():
        setattr(built.config, name, value)
    return Model.load(built)


def tokens(n: int = 3, pos: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (n, pos), generator=torch.Generator().manual_seed(seed))


def prompts() -> Batch:
    foils = torch.tensor([[1, 2], [0, 2], [0, 1]])
    return Batch(tokens(), tokens(seed=1), torch.arange(3)[:, None], foils)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_logits_are_those_of_the_whole_text(family):
    model = classifier(family)
    found = model.logits(tokens())
    assert found.shape == (3, 1, 3) and torch.equal(found, model.logits(tokens(), last=1))
    torch.testing.assert_close(found[:, 0], model.module(tokens()).logits)
    assert model.classes == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_padding_changes_nothing_whatever_it_is_made_of(family):
    model = classifier(family)
    assert model.pads
    padded, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0  # and ordinary tokens there
    found = model.logits(padded, mask)
    for row, n in ((0, 4), (1, 7)):
        alone = model.logits(padded[row : row + 1, :n])
        torch.testing.assert_close(found[row], alone[0], **tolerance(family))


def test_a_head_that_cannot_find_the_end_of_its_texts_says_what_to_set():
    with pytest.raises(
        ValueError, match=r"LlamaForSequenceClassification: .* Set `config.pad_token_id` to a"
    ):
        classifier("llama", pad_token_id=None)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_effects_are_change_times_gradient_of_a_spliced_run(family):
    model = classifier(family)
    dictionaries = mixed(model)
    found = dense_nodes(attribution_patching(model, prompts(), metric, dictionaries))
    gradients, deltas = total_gradients(model, prompts(), metric, dictionaries)
    for site in dictionaries:
        torch.testing.assert_close(found[site], gradients[site].nodes(deltas[site]), **tolerance(family))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_edges_of_every_node_add_up_to_its_effect(family):
    model = classifier(family)
    dictionaries = mixed(model)
    effects = attribution_patching(model, prompts(), metric, dictionaries)
    nodes = {name: torch.ones(effects[name].n_features + 1, dtype=torch.bool) for name in dictionaries}
    found = edges(model, prompts(), metric, dictionaries, effects, nodes)
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), **tolerance(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_integrated_gradients_add_up_to_the_change_when_a_site_is_patched(family):
    model = classifier(family)
    dictionaries = {name: autoencoders(model)[name] for name in ("resid.0", "mlp.1")}
    found = integrated_gradients(model, prompts(), metric, dictionaries, rule=gauss_legendre(100))
    exact = exact_patching(model, prompts(), metric, dictionaries, features={"resid.0": [], "mlp.1": []})
    for name in dictionaries:
        there = model.read(prompts().patch, [name])[model.site(name)]
        with torch.no_grad(), model.visiting([name], lambda _site, _x, there=there: there):
            change = metric(model.logits(tokens()), prompts()) - found.clean
        torch.testing.assert_close(found[name].dense().sum((1, 2)), change, rtol=1e-3, atol=5e-3)
        assert exact[name].error_effect.abs().max() > 0


@pytest.mark.parametrize("family", CAUSAL)
def test_a_probe_of_its_stream_and_a_lens_work_on_it(family):
    model = classifier(family)
    last = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    end = f"resid.{len(model.blocks) - 1}"
    with model.visiting([end], lambda _site, x: last[:, None].expand_as(x)):
        expected = model.logits(tokens(2))[:, 0]
    torch.testing.assert_close(model.unembed(last), expected, **tolerance(family))
    with pytest.raises(ValueError, match="classifies whole texts, and says nothing after each token"):
        LogitLens(model).trajectory(tokens()[0])
    probed = model.probed(Probe(torch.ones(3, WIDTH).double(), torch.zeros(3)), at="resid.1")
    assert probed.logits(tokens()).shape == (3, 5, 3)


def test_a_head_that_reads_the_first_token_has_no_unembedding():
    with pytest.raises(ValueError, match="reads more than one tensor"):
        classifier("bert").unembed(torch.zeros(1, WIDTH, dtype=torch.float64))


def test_it_writes_no_text():
    model = classifier("gpt2")
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification classifies texts, and writes none"):
        model.generate(tokens())


class Letters:
    """A tokenizer of letters."""

    all_special_ids = (1,)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [3 + ord(c) % 60 for c in text]

    def decode(self, ids: Any) -> str:
        return "".join(chr(i) for i in ids)


def test_circuits_are_found_evaluated_and_ablated():
    model = classifier("llama")
    texts = LabelledSet("letters", [LabelledText(c * 4, c, s) for c in "abc" for s in ("x", "y")])
    task = texts.task(Letters())
    model.tokenizer = Letters()
    dictionaries = autoencoders(model, n_features=8)
    dictionaries = {name: dictionaries[name] for name in ("resid.0", "mlp.1")}
    everything = find(model, task, dictionaries, node=10**6, edge=20, progress=False)
    assert Evaluation(model, task, dictionaries).faithfulness(everything).value == pytest.approx(1)
    rows = tokens()
    with applied(model, Ablate({"mlp.1": [2]}), dictionaries=dictionaries):
        changed = model.logits(rows)
    assert (changed - model.logits(rows)).abs().max() > 1e-4
