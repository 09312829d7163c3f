from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from circuits import embedded, lens_options
from circuits.__main__ import main
from circuits.lens_commands import Evaluating, Showing
from circuits.lens_fit import Fitting
from circuits.lens_folder import known_sites, source
from circuits.lens_statistics import STATISTICS
from circuits.lens_text import Texts, parted, unseen
from circuits.parser import parser
from circuits.question import part
from interventions.lenses import Adam, Fitted, LensCurves, LogitLens, TunedLens, evaluate
from interventions.lenses.optimisers import SGDNesterov
from interventions.lenses.published import write_published
from interventions.lenses.transfer import TransferMatrix
from interventions.model import Model

TINY = ["--steps", "6", "--tokens", "1k", "--context", "24", "--batch-size", "96"]
PROMPT = "The boys near the car"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"
WEIGHTS = Path(os.environ.get("BREADBOARD_WEIGHTS", SHARED))


def lens(*argv: object) -> int:
    return main(["lens", *map(str, argv)])


command = lens


@pytest.fixture(scope="module")
def model() -> Model:
    return embedded.model()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lens") / "fitted"
    assert lens("fit", *TINY, "--out", folder, "-q") == 0
    return folder


@pytest.fixture(scope="module")
def mamba(tmp_path_factory) -> Path:
    """A tiny Mamba without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "mamba"
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=None)
    MambaForCausalLM(config).save_pretrained(folder)
    return folder


# --- fit ----------------------------------------------------------------------------------------------------


def test_fitting_writes_a_lens_how_good_it_is_and_how_it_was_made(fitted, model):
    assert {path.name for path in fitted.iterdir()} >= {
        "lens.json", "fitted.json", "curves.json", "curves.svg", "losses.svg", "evaluation.json",
        "settings.json",
    }  # fmt: skip
    assert not (fitted / "checkpoint").exists()
    found = Fitted.load(fitted, model)
    assert found.steps == 6 and found.lens.sites == ("embed", "resid.0", "resid.1")
    assert all(found.lens.translators[site].weight.abs().max() > 0 for site in found.lens.sites)
    run = json.loads((fitted / "settings.json").read_text())["lens fit"]
    assert run["command"].startswith("circuits lens fit --steps 6") and run["model"] == model.fingerprint
    assert run["options"]["text"] == "own" and run["options"]["steps"] == 6
    assert set(run["seconds"]) == {"loading", "fitting", "testing", "all"}


def test_the_curves_are_those_of_text_held_out(fitted, model):
    held = unseen(model, Texts(tokens=1000, context=24), progress=False)
    assert held.shape == (4, 24)
    ours = evaluate({"tuned lens": TunedLens.load(fitted, model), "logit lens": LogitLens(model)}, held)
    kept = LensCurves.load(fitted)
    assert kept.lenses == ("tuned lens", "logit lens")
    for name in kept.lenses:
        torch.testing.assert_close(kept.mean("kl", name).mean, ours.mean("kl", name).mean)
    numbers = json.loads((fitted / "evaluation.json").read_text())
    curve = kept.bits_per_byte("kl", "tuned lens")
    assert numbers["lenses"]["tuned lens"]["resid.0"]["kl"]["bits_per_byte"] == pytest.approx(
        float(curve.mean[curve.sites.index("resid.0")])
    )
    assert numbers["tokens"] == 4 * 23 and numbers["bytes"] > numbers["tokens"]


def test_the_same_fit_again_only_tests(fitted, said):
    before = {path.name: path.read_bytes() for path in fitted.glob("lens*")}
    text = said("fit", *TINY, "--out", fitted)
    assert "Fitted already" in text and "cross-entropy, bits per byte" in text and "logit lens" in text
    assert before == {path.name: path.read_bytes() for path in fitted.glob("lens*")}


def test_another_fit_in_the_same_folder_is_refused_until_told_otherwise(tmp_path, said, mistake):
    argv = ["fit", *TINY, "--sites", "resid.0", "--out", tmp_path, "--no-draw", "-q"]
    said(*argv)
    assert not list(tmp_path.glob("*.svg"))
    line = mistake(*argv, "--loss", "ce")
    assert "a fit with another --loss;" in line and "--fresh" in line
    said(*argv, "--loss", "ce", "--fresh")
    assert json.loads((tmp_path / "fitted.json").read_text())["settings"]["loss"] == "cross_entropy"


def test_a_fit_says_what_it_does_and_takes_any_sites_optimizer_and_start(tmp_path, said, model):
    text = said(
        "fit", *TINY, "--sites", "mid.*", "heads.1", "mlp_in.0", "--start", "least-squares", "--optimizer",
        "adam", "--lr", "0.002", "--out", tmp_path,
    )  # fmt: skip
    found = Fitted.load(tmp_path, model)
    assert set(found.lens.sites) == {"mid.0", "mid.1", "mid.2", "heads.1", "mlp_in.0"}
    assert found.settings["optimiser"]["Adam"]["lr"] == 0.002
    assert "tuned, at 5 sites" in text and "6 steps of 96 tokens" in text
    assert all(site in text for site in found.lens.sites)
    assert {"mid.1", "heads.0", "resid.2"} <= set(known_sites(model))
    assert Fitting(optimizer="adam", lr=0.1).optimiser == Adam(lr=0.1)
    assert Fitting(lr=0.5).optimiser == SGDNesterov(lr_scale=0.5)


@pytest.mark.parametrize("start", ["zero", "least-squares"])
def test_an_interrupted_fit_goes_on_to_the_same_lens(tmp_path, monkeypatch, said, mistake, start):
    argv = ["fit", *TINY, "--start", start, "--no-draw", "--out"]
    said(*argv, tmp_path / "whole", "-q")
    steps: list[int] = []

    def step(self, *args, original=SGDNesterov.step, **settings):
        steps.append(settings["done"])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(SGDNesterov, "step", step)
        line = mistake(*argv, tmp_path / "parts", "-q", code=130)
        assert (
            line.startswith("circuits: Interrupted. The same command goes on from") and "checkpoint" in line
        )
        assert "is not finished" in mistake("show", tmp_path / "parts", PROMPT)
        said(*argv, tmp_path / "parts")
    one, other = (json.loads((tmp_path / name / "lens.json").read_text()) for name in ("whole", "parts"))
    assert one["sha256"] == other["sha256"] and not (tmp_path / "parts" / "checkpoint").exists()


def test_a_loss_that_is_not_finite_stops_keeps_the_last_good_lens_and_names_the_site(
    tmp_path, model, mistake
):
    argv = ["fit", *TINY, "--lr", "1e38", "--sites", "resid.0", "--out", tmp_path, "-q"]
    line = mistake(*argv)
    assert "resid.0, step" in line and "is kept" in line and str(tmp_path) in line
    kept = TunedLens.load(tmp_path, model)
    assert all(x.isfinite().all() for x in kept.tensors().values())


def test_text_is_held_out_of_a_file_and_not_fitted_on(tmp_path, model):
    path = tmp_path / "corpus.txt"
    path.write_text("The boys near the car are happy. The girl that the teachers love is old.\n" * 40)
    text, held = parted(model, Texts(str(path), 600, 24, 0.2), progress=False)
    assert text.shape == (20, 24) and held.shape == (5, 24)
    assert torch.equal(held, unseen(model, Texts(str(path), 600, 24, 0.2), progress=False))
    short, rest = parted(model, Texts(str(path), 10**6, 24, 0.5), progress=False)
    assert len(short) > 10 and abs(len(short) - len(rest)) <= 1


def test_a_recurrent_model_without_a_tokenizer_is_fitted_shown_and_measured(tmp_path, mamba, said, mistake):
    folder = tmp_path / "lens"
    text = said("fit", "--model", mamba, *TINY, "--out", folder, "--no-draw")
    assert "bits per token" in text and "embed" in text
    text = said("show", folder, "3 1 4, 1", "--html")
    assert "<3>" in text and (folder / "trajectory.svg").exists() and (folder / "trajectory.html").exists()
    assert "has no tokenizer" in mistake("show", folder, "three")
    assert "bits per token" in said("evaluate", folder, "--no-draw")


def test_a_model_of_stories_is_fitted_and_shown(tmp_path, said):
    if not (WEIGHTS / "stories260K").exists():
        pytest.skip("the weights of the model of stories are not here")
    said("fit", "--model", WEIGHTS / "stories260K", *TINY, "--out", tmp_path, "--no-draw", "-q")
    assert "upon" in said("show", tmp_path, "Once upon a time", "--no-draw")


# --- show ---------------------------------------------------------------------------------------------------


def test_what_a_lens_reads_is_said_and_drawn(fitted, model, tmp_path, said):
    out = tmp_path / "shown"
    text = said("show", fitted, PROMPT, "--statistic", "kl", "--html", "--format", "png", "--out", out)
    found = TunedLens.load(fitted, model).trajectory(PROMPT)
    assert {path.name for path in out.iterdir()} == {"trajectory.png", "trajectory.html"}
    assert "KL from the output (bits)" in text and "Likeliest next token" in text
    best = found.top_texts("output", 2)[0][0]
    assert best.replace(" ", "·") in text
    assert STATISTICS["kl"].number(found["kl"][0, 3].item()) in text
    assert text.index("\noutput") < text.index("\nresid.1") < text.index("\nembed")
    page = (out / "trajectory.html").read_text()
    assert 'id="s-kl" checked' in page and "Tuned lens of embedded" in page


def test_pictures_go_into_the_folder_of_the_lens_unless_told_otherwise(fitted, said):
    said("show", fitted, PROMPT, "-q")
    assert (fitted / "trajectory.svg").exists()


def test_the_logit_lens_needs_no_folder_and_reads_where_it_is_told(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = said("show", "logit", PROMPT, "--sites", "mlp.*", "--positions=-2:", "--top-k", "2")
    assert "mlp.2" in text and "embed" not in text.partition("Model")[2].partition("\n")[2]
    assert "output" in text and "boys" not in text
    assert (tmp_path / "results" / "lens-logit" / "trajectory.svg").exists()


@pytest.mark.parametrize("statistic", lens_options.STATISTICS)
def test_every_statistic_has_a_picture(fitted, tmp_path, said, statistic):
    said("show", fitted, "The boys", "--statistic", statistic, "--out", tmp_path, "-q")
    assert (tmp_path / "trajectory.svg").stat().st_size > 2000


def test_published_lenses_are_shown_and_measured(fitted, model, tmp_path, said, mistake):
    folder = write_published(TunedLens.load(fitted, model), tmp_path / "published")
    text = said("show", folder, PROMPT, "--model", "embedded", "--no-draw")
    ours = said("show", fitted, PROMPT, "--no-draw")
    assert text.partition("Likeliest")[2] == ours.partition("Likeliest")[2]
    out = ["--model", "embedded", "--tokens", "200", "--context", "24", "--out", tmp_path / "out"]
    assert "published" in said("evaluate", folder, *out, "--no-draw")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/no/where"}))
    assert "--model gives another" in mistake("show", folder, PROMPT)


# --- evaluate -----------------------------------------------------------------------------------------------


def test_lenses_are_measured_beside_the_logit_lens_on_the_text_that_was_held_out(fitted, tmp_path, said):
    before = json.loads((fitted / "evaluation.json").read_text())
    out = tmp_path / "out"
    text = said("evaluate", fitted, "--transfer", "--out", out)
    numbers = json.loads((out / "evaluation.json").read_text())
    assert set(numbers["lenses"]) == {"fitted", "logit lens"} and numbers["tokens"] == before["tokens"]
    for site, measures in before["lenses"]["tuned lens"].items():
        assert numbers["lenses"]["fitted"][site]["kl"] == pytest.approx(measures["kl"])
    assert {path.name for path in out.iterdir()} == {
        "evaluation", "evaluation.json", "evaluation.svg", "transfer", "transfer.svg", "settings.json"
    }  # fmt: skip
    assert LensCurves.load(out / "evaluation").lenses == ("fitted", "logit lens")
    assert TransferMatrix.load(out / "transfer").sites == ("embed", "resid.0", "resid.1")
    assert "by resid.0" in text and "cross-entropy, bits per byte" in text
    run = json.loads((out / "settings.json").read_text())["lens evaluate"]
    assert run["options"]["lenses"] == [str(fitted)]


def test_several_lenses_are_measured_on_a_text_of_choice(fitted, tmp_path, said, mistake):
    other = tmp_path / "other" / "fitted"
    said("fit", *TINY, "--sites", "resid.1", "--loss", "ce", "--out", other, "--no-draw", "-q")
    path = tmp_path / "corpus.txt"
    path.write_text("The boys near the car are happy. The girl that the teachers love is old.\n" * 9)
    argv = ["--text", path, "--context", "20", "--out", tmp_path / "out", "--no-draw"]
    text = said("evaluate", fitted, other, *argv)
    assert "corpus.txt" in text and str(other) in text and str(fitted) in text
    numbers = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(numbers["lenses"][str(other)]) == {"resid.1", "output"}
    assert "named twice" in mistake("evaluate", fitted, fitted, *argv)


# --- mistakes -----------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(fitted, tmp_path, mistake, mamba):
    out = ["--out", tmp_path / "out"]
    assert "No site matches 'resid.9'" in mistake("fit", *TINY, "--sites", "resid.9", *out)
    assert "No site matches 'mlp.0'; there are embed, resid.*, output" in mistake(
        "show", fitted, PROMPT, "--sites", "mlp.0"
    )
    assert "The prompt is empty" in mistake("show", fitted, " ")
    assert "There is no lens in 'nowhere'" in mistake("show", "nowhere", PROMPT)
    assert "There is no lens in" in mistake("evaluate", tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "There is no text" in mistake("fit", *TINY, "--text", empty, *out)
    empty.write_text("The boys near the car are happy.")
    assert "one row" in mistake("fit", *TINY, "--text", empty, *out)
    assert "0 leaves nothing to test on" in mistake("fit", "--held-out", "0", *out)
    assert "is no range of tokens" in mistake("show", fitted, PROMPT, "--positions", "3")
    assert "is left of" in mistake("show", fitted, PROMPT, "--positions", "30:", "--out", tmp_path)
    assert "No site matches 'gate.0'" in mistake("show", "logit", PROMPT, "--sites", "gate.0", *out)
    for name in ("lens.json", "settings.json"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text('{"something": "else"}')
        assert (
            "give another --out" in (line := mistake("fit", *TINY, "--out", other))
            or "another folder" in line
        )


def test_a_lens_of_another_model_is_refused(fitted, mamba, tmp_path, mistake):
    line = mistake("show", fitted, "3 1 4", "--model", mamba, "--out", tmp_path)
    assert "The lens was made for" in line and "write 64 numbers" in line
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, state_size=4, eos_token_id=None)
    MambaForCausalLM(config).save_pretrained(tmp_path / "wide")
    line = mistake("evaluate", fitted, "--model", tmp_path / "wide", "--out", tmp_path)
    assert "vocabulary of 140" in line and "40" in line


def test_a_lens_that_does_not_name_its_model_asks_for_it(fitted, model, tmp_path, mistake):
    TunedLens.load(fitted, model).save(tmp_path)
    text = json.loads((tmp_path / "lens.json").read_text())
    (tmp_path / "lens.json").write_text(json.dumps({**text, "model": {**text["model"], "name": ""}}))
    assert source(str(tmp_path)).model is None or "give --model" in mistake("show", tmp_path, PROMPT)


# --- the command line ---------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_command_line():
    for kind, argv in ((Fitting, ["fit"]), (Showing, ["show", "x", "y"]), (Evaluating, ["evaluate", "x"])):
        given = vars(parser().parse_args(["lens", *argv]))
        assert {field.name for field in fields(kind)} <= set(given)
        assert part(kind, given) == kind()


def test_help_does_not_wait_for_torch():
    script = """
import sys
from circuits.__main__ import main
for name in ("fit", "show", "evaluate"):
    assert main(["lens", name, "--help"]) == 0
assert main(["lens"]) == 0
print("torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "False"
    assert all(len(line) <= 100 for line in out.stdout.splitlines())
