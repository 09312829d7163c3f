"""Models made into classifiers by a probe of what a site holds."""

from __future__ import annotations

import pytest
import torch
from families import EVERY_FAMILY, WIDTH, tiny

from interventions.pooling import last, mean
from interventions.probing import Probe, probe_activations
from interventions.steering.token_choice import every

POOLS = {"mean": mean, "last": last}


def probe(n_classes: int = 3, width: int = WIDTH, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    shape = (width,) if n_classes == 2 else (n_classes, width)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Probe(weights, torch.randn(shape[:-1], generator=generator, dtype=torch.float64))


def tokens(n: int = 3, pos: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 64, (n, pos), generator=torch.Generator().manual_seed(seed))


def near(model) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 1e-5} if model.dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("pool", POOLS)
def test_logits_are_those_of_the_probe_on_pooled_activations(family, pool):
    model, reads = tiny(family), "resid.1"
    probed = model.probed(probe(), at=reads, pool=POOLS[pool])
    x = model.read(tokens(), [reads])[model.site(reads)]
    for t in range(x.shape[1]):
        expected = probe().logits(x[:, : t + 1].mean(1) if pool == "mean" else x[:, t])
        torch.testing.assert_close(probed.logits(tokens())[:, t], expected, **near(model))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_padding_changes_nothing_and_the_last_logits_are_those_of_the_text(family):
    model = tiny(family)
    if not model.pads:
        pytest.skip("it does not pad")
    probed = model.probed(probe(), at="resid.1")
    padded, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    padded[0, 4:] = mask[0, 4:] = 0
    found = probed.logits(padded, mask)
    for row, n in ((0, 4), (1, 7)):
        alone = probed.logits(padded[row : row + 1, :n])
        torch.testing.assert_close(found[row, :n], alone[0], **near(model))
        torch.testing.assert_close(found[row, -1], alone[0, -1], **near(model))


def test_of_two_classes_the_logits_are_zero_and_the_log_odds():
    model = tiny("llama")
    probed = model.probed(probe(2), at="mlp.1")
    acts = probe_activations(model, tokens().tolist(), ["mlp.1"], tokens=every)
    expected = probe(2).logits(acts["mlp.1"])
    found = probed.logits(tokens())[:, -1]
    torch.testing.assert_close(found, torch.stack([torch.zeros_like(expected), expected], -1))


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
