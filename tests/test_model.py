from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from families import FAMILIES, LAYERS, VOCAB, WIDTH, fresh, module, tiny
from torch import Tensor, nn

from interventions.model import Model
from interventions.sites import Layout, Site

TOKENS = torch.tensor([[5, 6, 7, 8], [8, 9, 10, 11]])
families = pytest.mark.parametrize("name", FAMILIES)

# What each kind of block writes; the rest have attention and an MLP.
RECURRENT = {"mamba": "mixer", "mamba2": "mixer", "falcon_mamba": "mixer", "zamba2": "mixer",
             "rwkv": "mixer mlp", "falcon_h1": "mixer attn mlp"}  # fmt: skip
HYBRID = {"recurrent_gemma": ["mixer", "mixer", "attn"], "jamba": ["mixer", "attn", "mixer"],
          "qwen3_next": ["mixer", "mixer", "attn"]}  # fmt: skip


def writers(name: str, block: int) -> list[str]:
    if name in HYBRID:
        return [HYBRID[name][block], "mlp"]
    return RECURRENT.get(name, "attn mlp").split()


def read(m: Model, sites: Any = None) -> dict[str, Tensor]:
    return {site.name: x for site, x in m.read(TOKENS, sites or m.sites).items()}


def hooks(m: Model) -> int:
    return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in m.module.modules())


@families
def test_sites_have_the_same_names_in_every_family(name):
    m, expected = tiny(name), ["embed"]
    for i in range(len(m.blocks)):
        expected += [n for part in writers(name, i) for n in (f"{part}_in.{i}", f"{part}.{i}")] + [
            f"resid.{i}"
        ]
    assert set(m.sites) == set(expected)
    assert {site.width for site in m.sites.values()} == {WIDTH} == {m.width}
    assert list(m.sites) == [s.name for s in sorted(m.sites.values())]
    assert len({site.order for site in m.sites.values()}) == len(m.sites)


@families
def test_sites_are_ordered_as_the_pass_reaches_them(name):
    m, reached = tiny(name), []
    with m.visiting(m.sites, lambda site, x: (reached.append(site.name), x)[1]):
        m.logits(TOKENS)
    assert reached == list(m.sites)


@families
def test_blocks_add_what_their_parts_write(name):
    m = tiny(name)
    kept = read(m)
    for i in range(len(m.blocks)):
        first = m.layout.blocks + (".0.pre_ln" if name == "rwkv" else ".0")  # a norm of the embedding
        before = m.at(first, "out" if name == "rwkv" else "in") if i == 0 else m.site(f"resid.{i - 1}")
        stream = m.read(TOKENS, [before])[before]
        written: Any = sum(kept[f"{part}.{i}"] for part in writers(name, i))
        torch.testing.assert_close(kept[f"resid.{i}"], stream + written, atol=1e-6, rtol=0)


@families
def test_identity_visits_change_nothing(name):
    m = tiny(name)
    with m.visiting(m.sites, lambda _, x: x.clone()):
        visited = m.logits(TOKENS)
    assert torch.equal(visited, m.logits(TOKENS))


@families
def test_visits_see_every_tensor_and_its_gradient(name):
    m, kept = tiny(name), {}

    def keep(site: Site, x: Tensor) -> Tensor:
        kept[site] = x.detach().requires_grad_() if site.name == "embed" else x
        return kept[site]

    with m.visiting(m.sites, keep):
        logits = m.logits(TOKENS)
    gradients = torch.autograd.grad(logits.square().sum(), list(kept.values()))
    assert len(gradients) == len(m.sites)
    assert all(
        g.shape == x.shape and g.abs().max() > 0 for g, x in zip(gradients, kept.values(), strict=True)
    )


@families
def test_what_a_visit_returns_is_what_flows_on(name):
    m = tiny(name)
    plain = read(m)
    for site in m.sites.values():
        with m.visiting([site], lambda _, x: x.flip(0)):
            changed = m.logits(TOKENS)
        assert not torch.allclose(changed, m.logits(TOKENS)), site
        if site.side == "in" and (out := site.name.replace("_in", "")).startswith("mlp"):
            with m.visiting(
                [site], lambda _, x: x.flip(0)
            ):  # rows do not touch: the output follows its input
                torch.testing.assert_close(read(m, [out])[out], plain[out].flip(0))


@families
def test_no_hook_outlives_an_exception(name):
    m, before = tiny(name), hooks(tiny(name))

    def fail(_site: Site, _x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), m.visiting(m.sites, fail):
        m.logits(TOKENS)
    with pytest.raises(LookupError), m.visiting(["embed", "nothing"], fail):
        pass
    assert hooks(m) == before
    assert "forward" not in m.blocks[0].__dict__


@families
def test_unembedding_the_last_residual_gives_the_logits(name):
    m = tiny(name)
    last = read(m)[f"resid.{len(m.blocks) - 1}"].requires_grad_()
    logits = m.logits(TOKENS)
    torch.testing.assert_close(m.unembed(last), logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(m.unembed(last[1, 2]), logits[1, 2], atol=1e-6, rtol=0)
    assert torch.autograd.grad(m.unembed(last).square().sum(), last)[0].abs().max() > 0


@families
def test_logits_of_the_last_positions_are_those_of_the_whole_pass(name):
    model = tiny(name)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    assert model.logits(tokens, last=2).shape[:2] == (2, 2)
    torch.testing.assert_close(model.logits(tokens, last=2), model.logits(tokens)[:, -2:])


@families
def test_resumed_passes_equal_whole_ones(name):
    m = tiny(name)
    assert m.resumes
    record, tokens = m.record(TOKENS), TOKENS.repeat(3, 1)
    whole, resid = m.logits(tokens), read(m)
    for block in range(len(m.blocks)):
        with m.resuming(record, block=block, repeat=3):
            torch.testing.assert_close(m.logits(tokens), whole, atol=1e-6, rtol=0)
            seen = m.read(tokens, m.sites)
        reached = {site.name for site in seen}
        assert reached.isdisjoint({f"{part}.{block - 1}" for part in writers(name, max(block - 1, 0))})
        for site in (f"resid.{i}" for i in range(block)):
            assert torch.equal(seen[m.site(site)], resid[site].repeat(3, 1, 1))


@families
def test_padding_on_the_right_changes_nothing(name):
    m = tiny(name)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    if not m.pads:
        with pytest.raises(ValueError, match="equal length"):
            m.logits(TOKENS, mask)
        return
    padded = m.logits(TOKENS, mask)
    torch.testing.assert_close(padded[0], m.logits(TOKENS[:1])[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(padded[1, :2], m.logits(TOKENS[1:, :2])[0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="left"):
        m.logits(TOKENS, mask.flip(1))


@families
def test_nnsight_reads_what_our_engine_reads(name):
    m = fresh(name)
    places = [(site.name, site.path, site.side) for site in m.sites.values()]
    traced, ours = _traced(m.nnsight, TOKENS, places), read(m)
    for site, x in ours.items():
        assert torch.equal(traced[site].reshape(x.shape), x), site


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mamba"])
def test_nnsight_reads_the_same_when_the_request_is_sent_off(name):
    m = fresh(name)
    m.tokenizer = _tokenizer()
    places = [(site.name, site.path, site.side) for site in m.sites.values()]
    traced, ours = _traced(m.nnsight, TOKENS, places, remote="local"), read(m)
    assert type(m.nnsight).__name__ == "TransformersModel"
    assert all(torch.equal(traced[site], x) for site, x in ours.items())


def _traced(traced: Any, tokens: Tensor, places: list[tuple[str, str, str]], **how: Any) -> dict[str, Tensor]:
    from nnsight import save

    got = {}
    with traced.trace(tokens, use_cache=False, **how):
        for name, path, side in places:
            envoy = traced.get(path)
            value = envoy.output if side == "out" else envoy.input
            got[name] = (value[0] if isinstance(value, tuple) else value).save()
        got = save(got)
    return got


def test_tensors_that_are_written_to_later_are_read_as_they_were():
    config = hf.FalconConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4)
    m = Model.load(hf.FalconForCausalLM(config).double())  # adds in place: mlp += attention
    kept = read(m)
    torch.testing.assert_close(kept["resid.1"], kept["resid.0"] + kept["attn.1"] + kept["mlp.1"])
    with m.visiting(["mlp.1"], lambda _, x: x.detach().requires_grad_()):
        assert m.logits(TOKENS).requires_grad


def test_nested_visits_go_in_the_order_in_which_they_were_opened():
    m, order = tiny("llama"), []
    first = m.visiting(["mlp.0"], lambda _, x: (order.append("first"), x + 1)[1])
    second = m.visiting(["mlp.0"], lambda _, x: (order.append("second"), x * 2)[1])
    with first, second:
        seen = read(m, ["mlp.0"])["mlp.0"]
    torch.testing.assert_close(seen, (read(m, ["mlp.0"])["mlp.0"] + 1) * 2)
    assert order == ["first", "second"]


def test_visits_reach_every_step_of_a_generation():
    m, shapes = tiny("gpt2"), []
    before = m.generate(TOKENS, max_new_tokens=3, do_sample=False)
    with m.visiting(["resid.1"], lambda _, x: (shapes.append(tuple(x.shape)), -x)[1]):
        after = m.generate(TOKENS, max_new_tokens=3, do_sample=False)
    assert shapes == [(2, 4, WIDTH), (2, 1, WIDTH), (2, 1, WIDTH)]
    assert before.shape == after.shape and not torch.equal(before, after)


def test_the_librarys_own_passes_are_left_alone():
    m, visited = tiny("gemma2"), []
    last = f"resid.{LAYERS - 1}"
    resid, logits = read(m)[last], m.logits(TOKENS)
    with (
        m.visiting(m.sites, lambda site, x: (visited.append(site), x * 0)[1]),
        m.resuming(m.record(TOKENS), block=2),
    ):
        visited.clear()
        torch.testing.assert_close(m.unembed(resid), logits)
        assert m.resumes and m.pads and not visited


def test_sites_may_be_anywhere():
    m = tiny("gpt2")
    site = m.at("transformer.h.1.attn.c_proj", "in", name="z.1")
    assert (site.name, site.side, site.width) == ("z.1", "in", WIDTH)
    assert m.site("attn_in.1") < site < m.site("attn.1")
    flat = tiny("mixtral").at("model.layers.0.mlp.experts")  # is handed (batch*pos width)
    assert tiny("mixtral").read(TOKENS, [flat])[flat].shape == (2, 4, WIDTH)
    with pytest.raises(LookupError, match=r"No module 'nowhere'; for instance transformer.h.0"):
        m.at("nowhere")
    with pytest.raises(ValueError, match=r"No site at the out side of 'transformer.h'"):
        m.at("transformer.h")


def test_a_wrong_name_is_told_the_right_ones():
    with pytest.raises(LookupError) as error:
        tiny("gpt2").site("mlp.12")
    assert str(error.value) == (
        "No site 'mlp.12'; this model has embed, attn_in.0 to attn_in.2, attn.0 to attn.2, "
        "mlp_in.0 to mlp_in.2, mlp.0 to mlp.2, resid.0 to resid.2, heads.0 to heads.2, mid.0 to mid.2."
    )


def test_models_are_frozen_and_say_what_they_are():
    m = tiny("llama")
    assert not m.module.training and not any(p.requires_grad for p in m.module.parameters())
    assert repr(m) == "Model(LlamaForCausalLM, 3 layers, width 32, cpu, float64)"
    with pytest.raises(TypeError):
        m.sites["mlp.0"] = m.site("mlp.1")  # type: ignore[index]


def test_fingerprints_tell_models_apart(tmp_path):
    m = tiny("gpt2")
    assert m.fingerprint == fresh("gpt2").fingerprint
    assert m.fingerprint != tiny("gpt2", torch.float32).fingerprint
    other = module("gpt2")
    with torch.no_grad():
        other.transformer.ln_f.weight[3] += 1e-3  # type: ignore[union-attr, operator]
    assert Model.load(other).fingerprint != m.fingerprint
    capped = fresh("gemma2")
    capped.module.config.final_logit_softcapping = 7.0  # type: ignore[union-attr]
    assert capped.fingerprint != tiny("gemma2").fingerprint


@pytest.mark.parametrize("name", ["gpt2", "rwkv"])
def test_models_load_from_folders_with_their_tokenizers(name, tmp_path):
    module(name).save_pretrained(tmp_path)  # type: ignore[operator]
    assert Model.load(tmp_path).tokenizer is None
    _tokenizer().save_pretrained(tmp_path)
    m = Model.load(str(tmp_path))
    assert m.tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert m.dtype == torch.float64
    assert torch.equal(m.logits(TOKENS), tiny(name).logits(TOKENS))
    assert m.fingerprint == tiny(name).fingerprint
    assert Model.load(tmp_path, dtype=torch.float32, device="cpu").dtype == torch.float32


@pytest.mark.parametrize(("kind", "error"), [("F32", 1e-5), ("Q8_0", 0.1)])
def test_models_load_from_gguf_files(kind, error, tmp_path):
    pytest.importorskip("gguf")
    m = Model.load(_gguf(module("qwen2", torch.float32), tmp_path / "tiny.gguf", kind))
    exact = tiny("qwen2", torch.float32)
    torch.testing.assert_close(m.logits(TOKENS), exact.logits(TOKENS), atol=error, rtol=0)
    assert m.tokenizer("ab")["input_ids"] == [2]
    assert list(m.sites) == list(exact.sites)


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at '/no/such/model'"):
        Model.load("/no/such/model")
    with pytest.raises(FileNotFoundError, match=r"nothing at '/no/such\.gguf'"):
        Model.load(Path("/no/such.gguf"))
    (tmp_path / "llama").mkdir()
    module("llama").config.save_pretrained(tmp_path / "llama")  # type: ignore[union-attr, operator]
    with pytest.raises(FileNotFoundError, match=r"No model in .*model\.safetensors"):
        Model.load(tmp_path / "llama")
    hf.T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="not a causal language model"):
        Model.load(tmp_path / "t5")
    with pytest.raises(ValueError, match="LlamaModel returns no logits"):
        Model.load(module("llama").model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no `generate` of its own, and `num_beams` is not known without"):
        Model.load(Recurrent()).generate(TOKENS, num_beams=2)


class Recurrent(nn.Module):
    """A character model of one's own: LSTMs, each of which adds to a stream."""

    def __init__(self, added: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.added = added
        self.characters = nn.Embedding(VOCAB, WIDTH)
        self.lstms = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Any:
        x = self.characters(tokens)
        for lstm in self.lstms:
            y, _state = lstm(x)
            x = x + y if self.added else y
        return SimpleNamespace(logits=self.head(x)) if self.added else self.head(x)


def test_modules_of_ones_own_need_no_layout_where_layers_follow_each_other():
    m = Model.load(Recurrent())
    assert list(m.sites) == ["embed", "resid.0", "resid.1", "resid.2"]
    kept = read(m)
    torch.testing.assert_close(m.unembed(kept["resid.2"]), m.logits(TOKENS))
    assert m.resumes and m.pads
    assert repr(m).startswith("Model(Recurrent, 3 layers, width 32")


def test_modules_of_ones_own_are_given_a_layout():
    with pytest.raises(ValueError, match=r"Pass layout=Layout\(blocks='lstms', embed='characters', parts=\{"):
        Model.load(Recurrent(added=True))
    m = Model.load(
        Recurrent(added=True), layout=Layout("lstms", "characters", head="head", parts={"mixer": ""})
    )
    assert list(m.sites) == ["embed", "mixer.0", "mixer.1", "mixer.2"]
    kept = read(m)
    stream = kept["embed"] + kept["mixer.0"] + kept["mixer.1"] + kept["mixer.2"]
    torch.testing.assert_close(m.module.head(stream), m.logits(TOKENS))  # type: ignore[operator]
    with m.visiting(["mixer.1"], lambda _, x: x * 2):
        assert not torch.allclose(m.logits(TOKENS), m.module(TOKENS).logits * 0 + m.module.head(stream))  # type: ignore[operator]
    with pytest.raises(ValueError, match="no unembedding"):
        m.unembed(stream)  # the stream is no module's output


def test_a_layout_overrides_what_is_found():
    layout = Layout("transformer.h", "transformer.wte", parts={"z": "attn.c_proj", "hidden_in": "mlp.c_proj"})
    m = Model.load(module("gpt2"), layout=layout)
    assert list(m.sites)[:4] == ["embed", "z.0", "hidden_in.0", "resid.0"]
    assert m.site("hidden_in.2").width == 4 * WIDTH
    with pytest.raises(
        ValueError, match="mlp='ffn', but no block has that; blocks have ln_1, attn, ln_2, mlp"
    ):
        Model.load(module("gpt2"), layout=Layout("transformer.h", "transformer.wte", parts={"mlp": "ffn"}))
    with pytest.raises(ValueError, match="blocks='layers', but the model has no module of that name"):
        Model.load(module("gpt2"), layout=Layout("layers", "transformer.wte"))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")


def _gguf(qwen2: nn.Module, path: Path, kind: str) -> Path:
    """Writes a model as llama.cpp would; rows of 32 in the type `kind`."""
    import gguf

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"w{i}" for i in range(3, VOCAB))])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, LAYERS)
    for name, x in qwen2.state_dict().items():
        stem, _, part = name.rpartition(".")
        fits = x.ndim == 2 and x.shape[1] % 32 == 0
        form = gguf.GGMLQuantizationType[kind if fits else "F32"]
        writer.add_tensor(f"{names.get_name(stem)}.{part}", gguf.quantize(x.numpy(), form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tokens", [torch.full((1, 4), 10**6), torch.ones(1, 5000, dtype=torch.long)])
def test_tokens_and_places_without_an_embedding_are_told(tokens):
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no embedding for a token, or for a place"):
        tiny("gpt2").logits(tokens)
