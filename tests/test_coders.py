from __future__ import annotations

import hashlib
import json
import os

import pytest
import safetensors.torch
import torch

from interventions.acts import Rows, Transcoder
from interventions.dictionaries import (
    Activation,
    BatchTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    SparseCoder,
    TopK,
    files,
    load,
    save,
)

D, F = 6, 20


def _activations() -> list[Activation]:
    return [ReLU(), JumpReLU(torch.linspace(0, 1, F)), TopK(4), BatchTopK(4, 0.5), GroupMax(4)]


ACTIVATIONS = pytest.mark.parametrize("activation", _activations(), ids=lambda a: type(a).__name__)


def _coder(activation: Activation | None = None, *, d_out: int = D, **options) -> SparseCoder:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return SparseCoder(
        W_enc=random(D, F),
        b_enc=random(F) / 4,
        W_dec=random(F, d_out),
        b_dec=random(d_out),
        W_skip=random(D, d_out) if options.pop("skip", False) else None,
        b_pre=random(D),
        activation=activation or ReLU(),
        **options,
    )


def _x(n: int = 50) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@ACTIVATIONS
def test_encoder_rows_are_the_gradients_of_features(activation):
    coder, index = _coder(activation), torch.arange(50) % F
    x = _x().requires_grad_()
    (gradient,) = torch.autograd.grad(coder.encode(x).gather(1, index[:, None]).sum(), x)
    active = coder.encode(x).gather(1, index[:, None])[:, 0] != 0
    assert 0 < active.sum() < len(active)
    torch.testing.assert_close(coder.encoder_rows(x, index) * active[:, None], gradient, rtol=0, atol=1e-14)


@ACTIVATIONS
def test_active_features_keep_their_pre_activation_and_exceed_the_cutoff(activation):
    coder, x = _coder(activation), _x()
    z, f = coder.pre_activations(x), coder.encode(x)
    torch.testing.assert_close(z, (x - coder.b_pre) @ coder.W_enc + coder.b_enc)
    assert torch.equal(f, torch.where(f != 0, z, 0.0))
    assert (f >= 0).all()
    cutoff = activation.cutoff(torch.arange(F))
    if isinstance(activation, GroupMax):
        groups = z.unflatten(-1, (4, 5))
        assert torch.equal(f.unflatten(-1, (4, 5)).sum(-1), groups.amax(-1).relu())
    elif cutoff is None:
        assert torch.equal(f.sort(-1).values[:, -4:], z.sort(-1).values[:, -4:].relu())
        assert ((f != 0).sum(-1) <= 4).all()
    else:
        assert torch.equal(f != 0, z > cutoff)


def test_top_k_sends_gradients_to_the_active_set_only():
    z = _x().requires_grad_()
    f = TopK(2)(z)
    (gradient,) = torch.autograd.grad(f.sum(), z)
    assert torch.equal(gradient, (f != 0).double())


def test_batch_top_k_does_not_depend_on_other_tokens():
    coder, x = _coder(BatchTopK(4, 0.5)), _x()
    torch.testing.assert_close(coder.encode(x)[:1], coder.encode(x[:1]))


def test_readout_is_the_covector_times_decoder_rows():
    coder = _coder(d_out=5)
    covector, index = torch.randn(7, 3, 5, dtype=torch.float64), torch.randint(F, (7, 4))
    one_hot = torch.nn.functional.one_hot(index, F).double()
    written = coder.decode(one_hot) - coder.decode(torch.zeros_like(one_hot))
    torch.testing.assert_close(coder.readout(covector, index), covector @ written.mT)
    torch.testing.assert_close(coder.decoder_rows(index), written)


def test_a_forward_pass_is_the_sum_of_features_bias_and_skip():
    coder, x = _coder(d_out=5, skip=True, site="mlp.3", reads="mlp_in.3"), _x()
    features = ((x - coder.b_pre) @ coder.W_enc + coder.b_enc).relu()
    skip = coder.skip(x)
    assert skip is not None and coder.W_skip is not None
    torch.testing.assert_close(skip, x @ coder.W_skip)
    torch.testing.assert_close(coder(x), features @ coder.W_dec + coder.b_dec + x @ coder.W_skip)
    assert _coder().skip(x) is None


def test_dictionaries_keep_to_the_protocols():
    assert isinstance(_coder(), Transcoder)
    assert isinstance(_coder(), Rows)


def test_weights_are_frozen_and_gradients_reach_the_input():
    coder, x = _coder(), _x().requires_grad_()
    assert not any(weight.requires_grad for weight in coder.parameters())
    coder(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_casting_spares_thresholds():
    threshold = torch.rand(F)
    coder = SparseCoder.random(D, F, activation=JumpReLU(threshold)).to(torch.bfloat16)
    assert coder.W_enc.dtype == torch.bfloat16
    assert torch.equal(coder.activation.threshold, threshold)
    assert coder(torch.randn(3, D)).dtype == torch.bfloat16


def test_a_dictionary_holds_copies_of_its_weights():
    W = torch.randn(F, D)
    coder = SparseCoder(W_enc=W.T, W_dec=W, b_enc=torch.zeros(F), b_dec=torch.zeros(D), activation=ReLU())
    coder.W_dec.zero_()
    assert W.abs().sum() > 0 and coder.W_enc.abs().sum() > 0


def test_the_representation_tells_shape_activation_and_site():
    assert repr(SparseCoder.random(64, 512)) == "SparseCoder(SAE 64 -> 512 features, ReLU())"
    transcoder = _coder(TopK(4), d_out=5, skip=True, site="mlp.3", reads="mlp_in.3")
    assert repr(transcoder) == (
        "SparseCoder(transcoder 6 -> 20 features -> 5, TopK(k=4), with skip, mlp_in.3 -> mlp.3)"
    )


def test_the_fingerprint_changes_with_the_equation_and_not_with_the_site():
    coder = SparseCoder.random(D, F, activation=TopK(4))
    same = SparseCoder.random(D, F, activation=TopK(4), site="resid.0")
    others = [
        SparseCoder.random(D, F, activation=TopK(5)),
        SparseCoder.random(D, F, activation=TopK(4), seed=1),
        SparseCoder.random(D, F, activation=BatchTopK(4, 0.5)),
        SparseCoder.random(D, F, activation=BatchTopK(4, 0.6)),
    ]
    assert coder.fingerprint == same.fingerprint
    assert len({coder.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("weight", ["b_enc", "W_dec", "b_dec", "W_skip", "b_pre"])
def test_a_weight_of_the_wrong_shape_is_named(weight):
    weights = {
        "W_enc": torch.zeros(D, F), "b_enc": torch.zeros(F), "W_dec": torch.zeros(F, D),
        "b_dec": torch.zeros(D), weight: torch.zeros(3, 3),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"has shape .*it must have shape|b_dec has shape"):
        SparseCoder(**weights, activation=ReLU())


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (lambda: TopK(F), "k must be smaller"),
        (lambda: TopK(0), "at least 1"),
        (lambda: BatchTopK(4, float("nan")), "finite"),
        (lambda: JumpReLU(torch.full((F,), -1.0)), "at least 0"),
        (lambda: JumpReLU(torch.zeros(F - 1)), "19 thresholds do not fit 20 features"),
    ],
)
def test_activations_that_do_not_fit_are_refused(activation, message):
    with pytest.raises(ValueError, match=message):
        SparseCoder.random(D, F, activation=activation())
    with pytest.raises(ValueError, match="k must be smaller"):
        TopK(4)(torch.zeros(1, 4))


# files


def _set() -> dict[str, SparseCoder]:
    coders = {
        f"site.{i}": SparseCoder.random(D, F, activation=activation, seed=i, site=f"site.{i}")
        for i, activation in enumerate(_activations())
    }
    coders["mlp/3 ü"] = _coder(TopK(3), d_out=5, skip=True, reads="mlp_in.3", meta={"fvu": 0.5}).float()
    return coders


def test_saved_dictionaries_load_as_they_were(tmp_path):
    coders = _set()
    save(coders, tmp_path / "new" / "folder")
    loaded = load(tmp_path / "new" / "folder")
    assert list(loaded) == list(coders)
    for name, coder in coders.items():
        assert loaded[name].fingerprint == coder.fingerprint
        assert loaded[name].site == name
        assert (loaded[name].reads, loaded[name].meta) == (coder.reads, coder.meta)
        assert not any(weight.requires_grad for weight in loaded[name].parameters())


def test_half_precision_files_are_half_as_large_and_keep_thresholds(tmp_path):
    coder = SparseCoder.random(64, 256, activation=JumpReLU(torch.rand(256)))
    sizes = []
    for dtype in (None, torch.float16):
        save({"resid.0": coder}, tmp_path, dtype=dtype)
        (file,) = tmp_path.glob("*.safetensors")
        sizes.append(file.stat().st_size)
    assert sizes[1] < 0.52 * sizes[0]
    loaded = load(tmp_path)["resid.0"]
    assert torch.equal(loaded.activation.threshold, coder.activation.threshold)
    assert torch.equal(loaded.W_enc, coder.W_enc.half().float())
    assert load(tmp_path, dtype=None)["resid.0"].W_enc.dtype == torch.float16


def test_saving_again_replaces_what_was_there_and_spares_other_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"another's")
    save(_set(), tmp_path)
    save({"a": SparseCoder.random(D, F)}, tmp_path)
    assert list(load(tmp_path)) == ["a"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("failure", ["infinite", "meta", "disk"])
def test_a_save_that_fails_leaves_the_former_set(tmp_path, failure, monkeypatch):
    before = SparseCoder.random(D, F)
    save({"a": before}, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    bad = SparseCoder.random(D, F, seed=2)
    if failure == "infinite":
        bad.b_dec[0] = torch.inf
    elif failure == "meta":
        bad.meta["x"] = object()
    else:
        replace = os.replace

        def full(source, target):
            if str(target).endswith("index.json"):
                raise OSError("No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
    with pytest.raises((ValueError, OSError)):
        save({"good": SparseCoder.random(D, F, seed=1), "bad": bad}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert load(tmp_path)["a"].fingerprint == before.fingerprint


def test_a_dictionary_is_not_saved_under_another_site(tmp_path):
    with pytest.raises(ValueError, match=r"'resid.0' belongs to the site 'resid.1'"):
        save({"resid.0": SparseCoder.random(D, F, site="resid.1")}, tmp_path)


def _edit(folder, change, *, sign: bool = True) -> None:
    """Changes an index, and by default makes its checksum match again."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index, index["dictionaries"]["a"])
    if sign:
        index["sha256"] = files._checksum(index)
    path.write_text(json.dumps(index))


def _rewrite(folder, change) -> None:
    """Changes the tensors of a dictionary, with checksums to match."""
    (path,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    _edit(folder, lambda index, entry: entry.update(sha256=sha256))


def _cut(folder, suffix: str) -> None:
    (path,) = folder.glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:-10])


def _flip(folder) -> None:
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


TAMPERING = {
    "no index": (lambda f: (f / "index.json").unlink(), "cannot be read"),
    "truncated index": (lambda f: _cut(f, ".json"), "not complete JSON"),
    "index of something else": (lambda f: (f / "index.json").write_text("[1]"), "not an index"),
    "unknown version": (lambda f: _edit(f, lambda i, e: i.update(version=99)), "version 99"),
    "edited index": (
        lambda f: _edit(f, lambda i, e: e["activation"].update(k=5), sign=False),
        "own checksum",
    ),
    "not a list of dictionaries": (lambda f: _edit(f, lambda i, e: i.update(dictionaries=[1])), "by site"),
    "missing file": (lambda f: next(f.glob("*.safetensors")).unlink(), r"a-.*safetensors.*cannot be read"),
    "truncated file": (lambda f: _cut(f, ".safetensors"), r"a-.*safetensors does not match its checksum"),
    "changed file": (_flip, r"a-.*safetensors does not match its checksum"),
    "parent folder": (lambda f: _edit(f, lambda i, e: e.update(file="../x.safetensors")), "not the name"),
    "absolute path": (lambda f: _edit(f, lambda i, e: e.update(file="/x.safetensors")), "not the name"),
    "windows path": (lambda f: _edit(f, lambda i, e: e.update(file="..\\x.safetensors")), "not the name"),
    "file is a number": (lambda f: _edit(f, lambda i, e: e.update(file=3)), "not the name"),
    "unknown activation": (
        lambda f: _edit(f, lambda i, e: e["activation"].update(kind="Module")),
        "unknown activation 'Module'",
    ),
    "unknown setting": (lambda f: _edit(f, lambda i, e: e["activation"].update(q=1)), r"a-.*safetensors"),
    "not finite": (lambda f: _rewrite(f, lambda t: t["b_dec"].fill_(torch.nan)), "b_dec is not finite"),
    "missing tensor": (lambda f: _rewrite(f, lambda t: t.pop("W_dec")), "lacks W_dec"),
    "unknown tensor": (lambda f: _rewrite(f, lambda t: t.update(gate=torch.ones(1))), "unknown tensors gate"),
    "wrong shape": (lambda f: _rewrite(f, lambda t: t.update(b_enc=torch.ones(3))), "b_enc has shape"),
    "whole numbers": (
        lambda f: _rewrite(f, lambda t: t.update(b_enc=torch.ones(F, dtype=torch.int))),
        "floating-point",
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_damaged_files_are_refused_by_name(tmp_path, case):
    save({"a": SparseCoder.random(D, F, activation=TopK(4))}, tmp_path)
    damage, message = TAMPERING[case]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
