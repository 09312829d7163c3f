"""Lenses in the formats of others, read and written."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from families import EVERY_FAMILY, fresh, tiny
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from interventions import Model
from interventions.lenses import TunedLens
from interventions.lenses.jacobian import JacobianLens
from interventions.lenses.published import (
    hidden_state_sites,
    read_published,
    unembedding_hash,
    write_published,
)
from interventions.lenses.published_jacobian import read_published_jacobian, write_published_jacobian

GOLDEN = Path(__file__).parent / "golden" / "tuned_lens"


@pytest.fixture(scope="module")
def golden():
    numbers = load_file(GOLDEN / "gpt2.safetensors")
    tokens, logits = numbers.pop("tokens"), numbers.pop("logits")
    module = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=3, n_head=2, n_positions=16))
    module.load_state_dict(numbers, strict=False)
    return Model.load(module), tokens, logits


def test_what_the_package_wrote_gives_the_logits_that_it_gave(golden):
    model, tokens, logits = golden
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lens = read_published(GOLDEN / "gpt2", model)
    assert lens.sites == ("transformer.h.0.in", "resid.0", "resid.1")
    acts = model.read(tokens, lens.sites)
    for site, expected in zip(lens.sites, logits, strict=True):
        torch.testing.assert_close(lens.logits(site, acts[model.site(site)])[0], expected)


def test_what_is_written_is_what_the_package_writes(golden, tmp_path):
    model, *_ = golden
    write_published(read_published(GOLDEN / "gpt2", model), tmp_path)
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path, GOLDEN / "gpt2"))
    assert ours.pop("base_model_name_or_path") == "GPT2LMHeadModel"
    assert theirs.pop("base_model_name_or_path") == "" and ours == theirs
    ours, theirs = (torch.load(path / "params.pt", weights_only=True) for path in (tmp_path, GOLDEN / "gpt2"))
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.oracle
def test_the_package_reads_what_is_written(golden, tmp_path):
    original = pytest.importorskip("tuned_lens.nn")
    model, tokens, logits = golden
    write_published(read_published(GOLDEN / "gpt2", model), tmp_path)
    lens = original.TunedLens.from_model_and_pretrained(model.module, str(tmp_path))
    states = model.module(tokens, output_hidden_states=True).hidden_states
    for i, expected in enumerate(logits):
        torch.testing.assert_close(lens(states[i], i)[0], expected)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_reads_back_what_is_written_for_its_hidden_states(family, tmp_path):
    model = fresh(family)
    sites = [site.name for site in hidden_state_sites(model)]
    recurrent = {"mamba", "mamba2", "falcon_mamba", "rwkv"}
    first = [] if family in recurrent else [sites[0]]
    after = len(model.blocks) - (family not in recurrent)
    assert sites == [*first, *(f"resid.{i}" for i in range(after))]
    lens = TunedLens.untrained(model, sites)
    for i, translator in enumerate(lens.translators.values()):
        translator.weight.fill_(i)
    write_published(lens, tmp_path)
    again = read_published(tmp_path, model)
    assert again.sites == lens.sites
    assert all(again.translators[s].weight[0, 0] == i for i, s in enumerate(lens.sites))
    if family in recurrent:  # as older releases had them, without what leaves the last block
        drop_last(tmp_path)
        assert read_published(tmp_path, model).sites == lens.sites[:-1]


def drop_last(folder):
    state = torch.load(folder / "params.pt", weights_only=True)
    torch.save(dict(list(state.items())[:-2]), folder / "params.pt")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))


def test_where_the_count_does_not_fit_the_sites_are_to_be_named(golden, tmp_path):
    model, *_ = golden
    folder = shutil.copytree(GOLDEN / "gpt2", tmp_path / "lens")
    drop_last(folder)
    with pytest.raises(ValueError, match=r"2 maps, and .* 3 hidden states .*: name the `sites`"):
        read_published(folder, model)
    assert read_published(folder, model, sites=["resid.0", "resid.1"]).sites == ("resid.0", "resid.1")
    with pytest.raises(ValueError, match="2 maps, and 1 sites"):
        read_published(folder, model, sites=["resid.0"])


def test_a_lens_for_another_unembedding_warns_and_one_for_another_width_is_refused(golden):
    model, *_ = golden
    other = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=3, n_head=2))
    with pytest.warns(UserWarning, match="their hashes differ"):
        read_published(GOLDEN / "gpt2", Model.load(other))
    with pytest.raises(ValueError, match="of width 8; GPT2LMHeadModel has 32"):
        read_published(GOLDEN / "gpt2", tiny("gpt2"))
    assert (
        unembedding_hash(model) == json.loads((GOLDEN / "gpt2" / "config.json").read_text())["unembed_hash"]
    )


class Harm:
    def __reduce__(self):
        return (print, ("read",))


def test_pickles_and_damaged_files_are_refused(golden, tmp_path):
    model, *_ = golden
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_published(tmp_path, model)
    folder = shutil.copytree(GOLDEN / "gpt2", tmp_path / "lens")
    content = (folder / "params.pt").read_bytes()
    torch.save({"0.weight": Harm()}, folder / "params.pt")
    with pytest.raises(ValueError, match="Objects are not read: they could run code"):
        read_published(folder, model)
    (folder / "params.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"params\.pt cannot be read"):
        read_published(folder, model)
    state = torch.load(GOLDEN / "gpt2" / "params.pt", weights_only=True)
    for wrong, match in (
        ({**state, "probe": torch.ones(1)}, "holds 'probe'"),
        ({k: x for k, x in state.items() if not k.startswith("1.")}, "numbered from 0 on"),
        ({**state, "2.bias": torch.full((8,), torch.nan)}, "Map 2 of .* is not finite"),
        ({**state, "2.bias": torch.ones(9)}, "Map 2 of .* has shapes"),
        ({**state, "7.bias": torch.ones(8)}, "a bias 7 without a weight"),
        ({**state, "0.weight": torch.ones(())}, "is no dense weight"),
        ({**state, "0.weight": torch.eye(8).long()}, r"no dense weight of real numbers, but torch\.int64"),
        ({**state, "0.weight": torch.eye(8).cfloat()}, r"of real numbers, but torch\.complex64"),
        ({**state, "0.weight": torch.eye(8).to_sparse()}, "is no dense weight"),
    ):
        torch.save(wrong, folder / "params.pt")
        with pytest.raises(ValueError, match=match):
            read_published(folder, model)
    without = {k: x for k, x in state.items() if k.endswith("weight")}
    torch.save(without, folder / "params.pt")
    assert not read_published(folder, model).translators["resid.0"].bias.any()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lens_type": "mlp"}))
    with pytest.raises(ValueError, match="of type 'mlp'"):
        read_published(folder, model)


def test_a_lens_on_the_hub_is_taken_from_the_space_of_its_authors(golden, monkeypatch):
    model, *_ = golden
    asked = []

    def download(repo, file, *, repo_type):
        asked.append((repo, file, repo_type))
        return str(GOLDEN / "gpt2" / Path(file).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    lens = read_published("openai-community/gpt2", model)
    assert len(lens.sites) == 3
    place = ("AlignmentResearch/tuned-lens", "lens/openai-community/gpt2/params.pt", "space")
    assert place in asked


def test_without_the_hub_the_error_says_what_to_do(golden, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(repo, file, *, repo_type):
        raise LocalEntryNotFoundError("offline mode is enabled.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match="Run once with a connection"):
        read_published("gpt2", golden[0])
    with pytest.raises(FileNotFoundError, match="not the name of a model"):
        read_published("../else", golden[0])


def test_a_lens_at_other_sites_has_no_place_in_the_format():
    model = fresh("gpt2")
    with pytest.raises(ValueError, match=r"none for transformer\.h\.0\.in"):
        write_published(TunedLens.untrained(model), "nowhere")
    sites = [site.name for site in hidden_state_sites(model)]
    with pytest.raises(ValueError, match=r"mid\.1 is none of the hidden states"):
        write_published(TunedLens.untrained(model, [*sites, "mid.1"]), "nowhere")


def test_jacobian_lenses_of_their_authors_are_read_and_written(tmp_path):
    model = tiny("gpt2")
    matrices = {f"resid.{i}": torch.randn(32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)}
    lens = JacobianLens(model, matrices, how={"rows": 7})
    path = write_published_jacobian(lens, tmp_path / "lens.pt", dtype=torch.float32)
    said = torch.load(path, weights_only=True)
    assert {key: said[key] for key in ("n_prompts", "source_layers", "d_model")} == {
        "n_prompts": 7,
        "source_layers": [0, 1],
        "d_model": 32,
    }
    again = read_published_jacobian(path, model)
    assert again.how["rows"] == 7
    assert all(torch.equal(again.jacobians[site], x) for site, x in matrices.items())
    for wrong, match in (
        ({"sums": 3}, "no matrices by the name of 'J'"),
        ({"J": {0: torch.eye(8)}}, r"Matrix 0 of .* is \(8, 8\)"),
        ({"J": {9: torch.eye(32)}}, "a matrix for layer 9"),
        ({"J": {0: torch.eye(32).cfloat()}}, "not of finite real numbers"),
        ({"J": {0: torch.eye(32).to_sparse()}}, "not of finite real numbers"),
        ({"J": {0: torch.eye(32)}, "metadata": {"target_layer": 1}}, "leads to layer 1"),
        ({"J": Harm()}, "could run code"),
    ):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=match):
            read_published_jacobian(path, model)
    with pytest.raises(ValueError, match="reads embed"):
        write_published_jacobian(JacobianLens(model, {"embed": torch.eye(32)}), path)
