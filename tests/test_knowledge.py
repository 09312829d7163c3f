from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from families import EVERY_FAMILY, tiny
from scipy.spatial.distance import mahalanobis
from torch import nn

from circuits.knowledge_plots import plot_layers, plot_transfers
from interventions.knowledge import (
    Contexts,
    Normal,
    Transfers,
    activation_anomalies,
    contexts,
    diagonal_distances,
    distances,
    excess_distances,
    gap_recovered,
    joined,
    log_odds,
    log_odds_anomalies,
    paired_contexts,
    random_transfer,
    transfer,
)
from interventions.knowledge.transfers import Cell
from interventions.model import Model
from interventions.probing import CRC, LDA, Activations, Logistic, MeanDifference
from interventions.probing.site_probes import earliest
from interventions.steering.confidence import Estimate
from tasks.quirky_arithmetic import addition

NO, YES = 5, 6
RECIPES = {"logistic": Logistic(), "mean difference": MeanDifference(), "LDA": LDA()}


@dataclass(frozen=True)
class Asked:
    """A claim of token ids: (truth, error, noise, who is asked)."""

    prompt: tuple[int, ...]
    persona: str
    truth: bool
    erring: bool
    difficulty: float
    choices: tuple[int, int] = (NO, YES)

    @property
    def label(self):
        return self.truth if self.persona == "Alice" else self.erring


def questions(n, seed):
    """Every claim put to both personas; tokens 10 to 13 say what is true and what Bob holds, 40 or 41 who
    is asked."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        truth, erring = (bool(torch.randint(2, (1,), generator=generator)) for _ in range(2))
        noise = [int(i) for i in torch.randint(14, 40, (2,), generator=generator)]
        difficulty = float(torch.rand(1, generator=generator))
        for persona in ("Alice", "Bob"):
            ids = (10 + truth, 12 + erring, 40 + (persona == "Bob"), *noise)
            found.append(Asked(ids, persona, truth, erring, difficulty))
    return found


class Planted(nn.Module):
    """A model of four blocks that knows the truth at the second and says what the persona does at the fourth.

    The stream at the last token holds: 0 the truth, in blocks 1 and 2, negated after the answer no; 1 what is
    said, in block 3; 2 who is asked, from block 2 on; 3 and on noise from the tokens.
    """

    def __init__(self, width=16, vocabulary=64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.embed.weight.data = torch.randn(vocabulary, width, generator=generator)
        self.embed.weight.data[:, :3] = 0
        self.blocks = nn.ModuleList(PlantedBlock(i, width) for i in range(4))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight.data.zero_()
        self.head.weight.data[YES, 1], self.head.weight.data[NO, 1] = 1.0, -1.0

    def forward(self, tokens):
        x = self.embed(tokens)
        # What every position knows of the first tokens and of its own.
        first = torch.zeros(tokens.shape[0], tokens.shape[1], 3)
        first[..., 0] = 2.0 * (tokens[:, :1] == 11) - 1
        first[..., 0] *= 1 - 2.0 * (tokens == NO)
        first[..., 1] = 2.0 * (tokens[:, 1:2] == 13) - 1 if tokens.shape[1] > 1 else 0
        first[..., 2] = 1.0 * (tokens[:, 2:3] == 41) if tokens.shape[1] > 2 else 0
        for block in self.blocks:
            block.known = first
            x = block(x)
        return self.head(x)


class PlantedBlock(nn.Module):
    def __init__(self, i, width):
        super().__init__()
        self.i = i
        self.mix = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.mix.weight)
        self.mix.weight.data[3:, 3:] = 0.05 * torch.randn(
            width - 3, width - 3, generator=torch.Generator().manual_seed(i)
        )

    def forward(self, x):
        truth, erring, bob = self.known.to(x).unbind(-1)
        add = torch.zeros_like(x)
        if self.i == 1:
            add[..., 0] = 4 * truth
        if self.i == 2:
            add[..., 2] = bob
        if self.i == 3:
            add[..., 0] = -4 * truth
            add[..., 1] = 4 * torch.where(bob > 0, erring, truth)
        return x + self.mix(x) + add


@pytest.fixture(scope="module")
def planted():
    return Model.load(Planted())


@pytest.fixture(scope="module")
def read(planted):
    sites = [f"resid.{i}" for i in range(4)]
    return [contexts(planted, questions(300, seed), sites, progress=False) for seed in (0, 1)]


def test_a_planted_truth_is_found_where_it_is_and_not_where_the_answer_is(read):
    found = transfer(*read, RECIPES, resamples=50)
    for recipe in RECIPES:
        cell = found.cell(recipe, "A", "B")
        assert cell.site == "resid.1"
        assert cell.auroc.mean == cell.by_site["resid.2"].mean == 1
        assert cell.by_site["resid.3"].mean == 0  # what is said there is what Bob holds
        assert abs(cell.by_site["resid.0"].mean - 0.5) < 0.15
        assert found.cell(recipe, "A", "AH").auroc.mean == found.cell(recipe, "AE", "BH").auroc.mean == 1
        assert found.cell(recipe, "B", "BH").site == "resid.3"
        assert found.cell(recipe, "B", "BH").auroc.mean == 0
        assert found.recovered(recipe) == found.recovered(recipe, "A", "BH") == 1
    assert found.said["A"].mean == 1 and found.said["B"].mean == 0


def test_unsupervised_recipes_take_contrast_pairs(planted):
    sites = ["resid.1", "resid.2"]
    paired = [paired_contexts(planted, questions(60, seed), sites, progress=False) for seed in (0, 1)]
    assert paired[0].activations["resid.1"].shape == (120, 2, 16)
    found = transfer(*paired, {"CRC": CRC()}, moves={"A": ("A", "B")}, resamples=10)
    assert found.cell("CRC", "A", "B").site == "resid.1"
    assert found.cell("CRC", "A", "B").auroc.mean == 1


def test_random_directions_are_between_chance_and_the_planted_one(read):
    found = random_transfer(*read, n=100, moves={"A": ("A", "B")})
    assert 0.6 < found.cell("random", "A", "B").by_site["resid.1"].mean < 1
    assert abs(found.cell("random", "A", "B").by_site["resid.0"].mean - 0.5) < 0.1
    assert found.cell("random", "A", "A").auroc.n == 100


def test_results_of_several_recipes_are_joined(read):
    moves = {"A": ("A", "B")}
    one = transfer(*read, {"LDA": LDA()}, moves=moves, resamples=10)
    both = joined(one, random_transfer(*read, n=10, moves=moves))
    assert both.recipes == ("LDA", "random") and both.moves == (("A", "A"), ("A", "B"))
    with pytest.raises(ValueError, match="comes twice"):
        joined(one, one)
    with pytest.raises(ValueError, match="same sites"):
        joined(one, replace(one, sites=("x",)))


def test_contexts_are_cut_by_persona_and_difficulty(read):
    every = read[0]
    easy, hard = every.of("AE"), every.of("BH")
    assert easy.trusted.all() and not hard.trusted.any()
    bounds = every.difficulty.sort().values
    assert easy.difficulty.max() == bounds[149] and hard.difficulty.min() == bounds[-150]
    assert len(every.of("all")) == 600 and len(every.of("A")) == 300
    assert (every.disagreeing().truth != every.disagreeing().erring).all()
    assert every.of("B").labels.equal(every.of("B").erring)
    assert every.of("A").saying.labels.equal(every.of("A").truth.long())
    for name in ("C", "AX", "", "allX"):
        with pytest.raises(ValueError, match="No context"):
            every.of(name)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_is_read_is_what_the_model_holds_before_it_answers(family):
    model = tiny(family)
    asked = [Asked((3, 7, 9), "Alice", True, False, 0.0), Asked((8, 4, 11), "Bob", True, False, 1.0)]
    asked.append(Asked((8, 4, 12, 9), "Bob", False, True, 1.0))
    site = list(model.sites)[-1]
    found = contexts(model, asked, [site], progress=False)
    paired = paired_contexts(model, asked, [site], progress=False)
    odds = log_odds(model, asked)
    assert found.odds.equal(odds)
    for i, question in enumerate(asked):
        tokens = torch.tensor([question.prompt])
        held = model.read(tokens, [site])[model.site(site)][0, -1]
        assert torch.allclose(found.activations[site][i].to(held), held, atol=1e-5)
        logits = model.logits(tokens)[0, -1]
        assert odds[i].item() == pytest.approx((logits[YES] - logits[NO]).item(), abs=1e-5)
        for side, answer in enumerate((YES, NO)):
            held = model.read(torch.tensor([(*question.prompt, answer)]), [site])[model.site(site)][0, -1]
            assert torch.allclose(paired.activations[site][i, side].to(held), held, atol=1e-5)


def test_distances_are_those_of_scipy():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double() @ torch.rand(4, 4).double()
    others = torch.randn(7, 4).double()
    normal = Normal.fit(x)
    inverse = np.linalg.inv(np.cov(x.numpy(), rowvar=False))
    expected = [mahalanobis(row, x.mean(0).numpy(), inverse) ** 2 for row in others.numpy()]
    assert torch.allclose(distances(normal, others), torch.tensor(expected), rtol=1e-9)
    alone = ((others - x.mean(0)) ** 2 / x.var(0)).sum(1)
    assert torch.allclose(diagonal_distances(normal, others), alone)
    assert torch.allclose(excess_distances(normal, others), torch.tensor(expected) - alone)


def test_excess_distances_rank_as_the_log_densities_of_two_normals_do():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator).double() @ torch.randn(3, 3, generator=generator).double()
    normal, others = Normal.fit(x), torch.randn(9, 3, generator=generator).double()
    full = torch.distributions.MultivariateNormal(normal.mean, normal.covariance)
    alone = torch.distributions.Normal(normal.mean, normal.covariance.diagonal().sqrt())
    excess = -2 * (full.log_prob(others) - alone.log_prob(others).sum(1))
    found = excess_distances(normal, others) - excess
    assert torch.allclose(found, found[0].expand(9))


def test_a_covariance_without_an_inverse_is_refused_and_shrunk_ones_are_not():
    x = torch.randn(5, 8)
    with pytest.raises(ValueError, match="5 examples of 8 features"):
        Normal.fit(x)
    assert distances(Normal.fit(x, shrinkage=0.1), x).isfinite().all()
    with pytest.raises(ValueError, match="shrinkage=2"):
        Normal.fit(x, shrinkage=2)
    with pytest.raises(ValueError, match="At least two"):
        Normal.fit(x[:1])


def test_what_is_unusual_is_told(read):
    train, test = read
    told = activation_anomalies(train, test, resamples=20)
    assert told["resid.2"].mean > 0.95 > 0.6 > told["resid.1"].mean  # from where on it holds who is asked
    generator = torch.Generator().manual_seed(0)

    def at(n, together):
        truth = torch.rand(2 * n, generator=generator) < 0.5
        trusted = torch.arange(2 * n) % 2 == 0
        other = torch.where(trusted, truth, ~truth) if together else truth
        signs = torch.stack([truth, other]).double() * 2 - 1
        noise = 0.5 * torch.randn(2, 2 * n, 1, generator=generator)
        rows = {f"resid.{i}": torch.cat([signs[i][:, None] + noise[i]], dim=1) for i in range(2)}
        zeros = torch.zeros(2 * n).double()
        return Contexts(Activations(rows), truth, ~truth, trusted, zeros, zeros)

    # Sites that disagree where Bob is asked, each being as usual alone: what probes say together tells.
    for score in (distances, excess_distances):
        found = log_odds_anomalies(
            at(200, True), at(200, True), at(200, True), LDA(), distance=score, resamples=20
        )
        assert found.mean > 0.9
    same = log_odds_anomalies(at(200, False), at(200, False), at(200, False), LDA(), resamples=20)
    assert abs(same.mean - 0.5) < 0.1


def test_the_gap_recovered_is_arithmetic():
    assert gap_recovered(0.8, floor=0.2, ceiling=1.0) == pytest.approx(0.75)
    assert gap_recovered(0.1, floor=0.2, ceiling=0.7) == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="no gap"):
        gap_recovered(0.5, floor=0.9, ceiling=0.9)
    at = [("A", "AH", 0.9), ("B", "BH", 0.1), ("AE", "BH", 0.7)]
    cells = tuple(
        Cell("LDA", one, other, "resid.0", Estimate(value, value, value, 10), {}) for one, other, value in at
    )
    found = Transfers(cells, ("resid.0",), {})
    assert found.recovered("LDA") == pytest.approx(0.75)
    with pytest.raises(LookupError, match=r"No cell LDA all->BH; recipes: LDA; moves: A->AH"):
        found.recovered("LDA", "all", "BH")
    assert "| LDA | 0.900 | 0.100 | 0.700 | 0.75 |" in found.table()


def test_the_earliest_informative_site_comes_near_the_best():
    assert earliest({"a": 0.6, "b": 0.7, "c": 0.71}) == "b"
    assert earliest({"a": 0.6, "b": 0.7, "c": 0.71}, share=1) == "c"
    assert earliest({"a": 0.3, "b": 0.49, "c": 0.4}) == "b"  # nothing is above chance


def test_transfers_come_back_from_files(read, tmp_path):
    found = transfer(*read, {"LDA": LDA()}, moves={"A": ("A", "B")}, resamples=10)
    found.save(tmp_path / "transfers.json")
    assert Transfers.load(tmp_path / "transfers.json") == found
    (tmp_path / "transfers.json").write_text("{}")
    with pytest.raises(ValueError, match="no file of transfers"):
        Transfers.load(tmp_path / "transfers.json")


def test_pictures_are_drawn(read, tmp_path):
    found = transfer(*read, {"LDA": LDA()}, resamples=10)
    for name in ("a.svg", "a.png"):
        assert plot_transfers(found, tmp_path / name, title="x").stat().st_size > 1000
        assert plot_layers(found, tmp_path / name, recipe="LDA").stat().st_size > 1000
    with pytest.raises(LookupError):
        plot_layers(found, tmp_path / "a.svg", recipe="no")


def test_wrong_inputs_are_said_to_be_so(planted, read):
    with pytest.raises(ValueError, match="no recipes"):
        transfer(*read, {})
    with pytest.raises(ValueError, match="no questions"):
        contexts(planted, [], ["resid.0"])
    with pytest.raises(TypeError, match="Question 0 has no prompt"):
        contexts(planted, ["2 + 2"], ["resid.0"])
    with pytest.raises(ValueError, match="begin with one token"):
        contexts(planted, [replace(questions(1, 0)[0], choices=(5, 5))], ["resid.0"])
    with pytest.raises(LookupError, match="No site"):
        contexts(planted, questions(1, 0), ["resid.9"])
    with pytest.raises(ValueError, match="agree on all"):
        Contexts(read[0].activations, *[read[0].truth] * 3, read[0].difficulty, read[0].odds).disagreeing()
    with pytest.raises(ValueError, match="600 questions, but 300 rows of odds"):
        replace(read[0], odds=read[0].odds[:300])


def test_the_example_runs_through_at_toy_size(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs" / "examples")
    knowledge = import_module("knowledge")
    toy = knowledge.Experiment(knowledge.Recurrent, addition(n=400, digits=2), 16, 2, 30, 20, batch=32)
    report = knowledge.run("toy", toy, tmp_path)
    assert report == (tmp_path / "report.md").read_text()
    assert "| LDA |" in report and "activations at resid.1" in report
    assert (
        knowledge.run("toy", toy, tmp_path).split("\n")[:4] == report.split("\n")[:4]
    )  # loaded, not trained
    assert {"transfers.json", "transfers.svg", "layers.svg"} <= {path.name for path in tmp_path.iterdir()}
