from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from circuits import dictionary_commands, dictionary_options, dictionary_training, embedded
from circuits.__main__ import main
from circuits.dictionary_training import RECIPES, Training
from circuits.parser import parser
from circuits.question import loaded_dictionaries, part
from circuits.site_pairs import site_pairs
from circuits.text import rows, special
from interventions.dictionaries import SparseCoder, load, quality, save
from interventions.dictionaries.activations import TopK
from interventions.dictionaries.measures import overlap
from interventions.dictionaries.trainee import Trainee
from interventions.model import Model

TINY = ["--steps", "30", "--tokens", "2k", "--context", "24", "--batch-size", "64", "--features", "96"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"
WEIGHTS = Path(os.environ.get("BREADBOARD_WEIGHTS", SHARED))


def dictionaries(*argv: object) -> int:
    return main(["dictionaries", *map(str, argv)])


command = dictionaries


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A text that the embedded model has words for."""
    model = embedded.model()
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    text = rows(model, "own", context=40, n=64, seed=3, progress=False)
    path.write_text("\n".join(model.tokenizer.decode(row, skip_special_tokens=True) for row in text))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("dictionaries") / "trained"
    sites = ["--sites", "resid.1", "mlp_in.0->mlp.0", "--skip"]
    argv = ["train", "--text", corpus, *sites, *TINY, "--k", "4", "--seeds", "0,1", "--out", folder, "-q"]
    assert dictionaries(*argv) == 0
    return folder


# --- train --------------------------------------------------------------------------------------------------


def test_transcoders_are_trained_as_one_across_layers(tmp_path, corpus, said):
    sites = ["--sites", "mlp_in.*->mlp.*", "resid.1", "--cross-layer"]
    out = tmp_path / "cross"
    text = said("train", "--text", corpus, *sites, *TINY, "--k", "4", "--seeds", "0,1", "--out", out, "-q")
    assert text == ""
    found = load(out / "seed-1")
    assert list(found["mlp.0"].later) == ["mlp.1", "mlp.2"] and isinstance(found["resid.1"], SparseCoder)
    assert "transcoder, writes 2 later" in said("inspect", out / "seed-0")


@pytest.mark.parametrize("options", [["--sites", "resid.1"], ["--sites", "mlp_in.*->mlp.*", "--skip"]])
def test_what_cannot_be_trained_across_layers_is_refused(tmp_path, corpus, mistake, options):
    line = mistake("train", "--text", corpus, *options, "--cross-layer", *TINY, "--out", tmp_path / "no")
    assert "--cross-layer takes pairs" in line


def test_training_writes_dictionaries_their_quality_and_how_they_were_made(trained):
    assert {path.name for path in trained.iterdir()} >= {"seed-0", "seed-1", "settings.json"}
    assert not (trained / "checkpoint").exists()
    found = [load(trained / f"seed-{seed}") for seed in (0, 1)]
    assert all(set(known) == {"resid.1", "mlp.0"} for known in found)
    assert found[0]["mlp.0"].reads == "mlp_in.0" and found[0]["mlp.0"].W_skip is not None
    assert found[0]["resid.1"].n_features == 96
    assert not torch.equal(found[0]["resid.1"].W_dec, found[1]["resid.1"].W_dec)
    numbers = json.loads((trained / "seed-1" / "quality.json").read_text())["resid.1"]
    assert 0 < numbers["fvu"] < 1 and numbers["recovered"] > 0.2
    run = json.loads((trained / "settings.json").read_text())["train"]
    assert run["command"].startswith("circuits dictionaries train --text")
    assert run["options"]["k"] == 4 and run["options"]["seeds"] == [0, 1]
    assert set(run["seconds"]) == {"loading", "training", "testing", "all"}


def test_the_quality_is_that_of_text_held_out(trained, corpus):
    model = embedded.model()
    text = rows(model, str(corpus), context=24, n=10**6)
    n = -(-2000 // 24)
    unseen = text[: n + n // 10][-(n // 10) :]
    known = load(trained / "seed-0")
    numbers = json.loads((trained / "seed-0" / "quality.json").read_text())["mlp.0"]
    assert numbers["fvu"] == pytest.approx(
        quality(model, known, unseen, ignore=special(model))["mlp.0"].fvu, rel=1e-4
    )


def test_the_same_training_again_only_tests(trained, corpus, said):
    before = {path.name: path.read_bytes() for path in (trained / "seed-0").glob("*.safetensors")}
    sites = ["--sites", "resid.1", "mlp_in.0->mlp.0", "--skip"]
    again = ["train", "--text", corpus, *sites, *TINY, "--k", "4", "--seeds", "0,1", "--out", trained]
    text = said(*again)
    assert "Trained already" in text and "on text held out" in text
    assert before == {path.name: path.read_bytes() for path in (trained / "seed-0").glob("*.safetensors")}


def test_another_training_in_the_same_folder_is_refused_until_told_otherwise(tmp_path, corpus, mistake):
    argv = ["train", "--text", corpus, "--sites", "resid.1", *TINY, "--out", tmp_path, "-q"]
    assert dictionaries(*argv, "--k", "4") == 0
    line = mistake(*argv, "--k", "8")
    assert "training with another --k;" in line and "--fresh" in line
    assert dictionaries(*argv, "--k", "8", "--fresh") == 0
    assert load(tmp_path)["resid.1"].activation.k == 8
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 14}')
    assert "is a file of something else" in mistake(*argv, "--k", "8")
    assert "is a file of something else" in mistake(*argv, "--k", "8", "--fresh")


def test_dictionaries_of_elsewhere_are_not_replaced(tmp_path, mistake):
    save({"resid.1": SparseCoder.random(64, 96, site="resid.1")}, tmp_path)
    assert "not trained here" in mistake("train", "--out", tmp_path)


def test_sites_are_names_patterns_and_pairs_of_them():
    model = embedded.model()
    assert site_pairs(model, ["resid.*"]) == [(f"resid.{i}",) * 2 for i in range(3)]
    assert site_pairs(model, ["mlp_in.*->mlp.*"]) == [(f"mlp_in.{i}", f"mlp.{i}") for i in range(3)]
    assert site_pairs(model, ["mlp_in.1->mlp.1", "embed"]) == [("mlp_in.1", "mlp.1"), ("embed", "embed")]
    assert site_pairs(model, ["resid.1", "resid.*"])[0] == ("resid.1", "resid.1")
    assert len(site_pairs(model, ["resid.1", "resid.*"])) == 3
    with pytest.raises(LookupError, match=r"No site 'reside\.1'; this model has"):
        site_pairs(model, ["reside.1"])
    with pytest.raises(ValueError, match="Two dictionaries would write"):
        site_pairs(model, ["mlp_in.1->mlp.1", "mlp.1"])


def test_every_recipe_that_is_named_is_there_and_takes_its_option():
    assert set(dictionary_options.RECIPES) == set(RECIPES)
    for name, kind in RECIPES.items():
        made = dictionary_training._recipe(Training(recipe=name, **{kind.option: 4}))
        assert "4" in repr(made)


def test_defaults_of_training_are_those_of_the_command_line():
    given = vars(parser().parse_args(["dictionaries", "train"]))
    assert {field.name for field in fields(Training)} <= set(given)
    made = part(Training, given)
    assert {**vars(made), "sites": tuple(made.sites)} == vars(Training())


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_lists_what_is_there(trained, said):
    text = said("inspect", trained / "seed-0")
    assert "mlp.0" in text and "mlp_in.0" in text and "skip transcoder" in text
    assert "layout own" in text and "2 dictionaries, 192 features" in text
    assert "FVU" not in text


def test_inspect_with_a_model_says_how_well_they_fit(said):
    text = said("inspect", "embedded", "--model", "embedded", "--site", "resid.*")
    assert "FVU" in text and "resid.2" in text and "mlp.0" not in text
    values = [float(line.split()[-2]) for line in text.splitlines() if line.startswith("resid.")]
    assert len(values) == 3 and all(0 < value < 0.05 for value in values)


def test_dictionaries_that_do_not_fit_are_noticed(tmp_path, said):
    coder = SparseCoder.random(64, 96, site="resid.1")
    coder.W_dec.data *= 30
    save({"resid.1": coder}, tmp_path)
    assert "worse than the mean" in said("inspect", tmp_path, "--model", "embedded")


def test_a_feature_is_shown_on_the_terminal_without_colours(trained, corpus, said):
    text = said("inspect", "embedded", "--feature", "resid.1/131", "--text", corpus, "--tokens", "1k")
    assert text.startswith("resid.1/131") and "raises" in text and "most active" in text
    assert "\x1b" not in text


def test_features_are_written_to_a_page(trained, corpus, tmp_path, said):
    out = tmp_path / "new" / "page.html"
    text = said(
        "inspect", "embedded", "--site", "resid.1", "--features", "131,62", "7", "--top", 2, "--random", 1,
        "--text", corpus, "--tokens", "1k", "--out", out,
    )  # fmt: skip
    assert f"Written to {out}: 6 features." in text
    html = out.read_text()
    assert all(f'id="f-resid-1-{feature}"' in html for feature in (131, 62, 7))


def test_dictionaries_trained_here_know_their_model_and_text(trained, said):
    text = said("inspect", trained / "seed-0", "--site", "resid.1", "--top", "1", "--tokens", "1k")
    assert text.startswith("resid.1/") and "positions" in text


def test_the_most_dense_features_come_first(corpus, tmp_path):
    asked = dictionary_commands.Inspection("embedded", top=3, random=2)
    model, coder = embedded.model(), embedded.dictionaries()["mlp.1"]
    text = rows(model, str(corpus), context=24, n=40)
    drawn = dictionary_commands._drawn(asked, model, coder, text, "mlp.1", [])
    density = (coder.encode(model.read(text, ["mlp.1"])[model.site("mlp.1")])[:, 1:] > 0).float().mean((0, 1))
    assert density[drawn[:3]].min() >= density[drawn[3:]].max() > 0
    assert len(set(drawn)) == 5


# --- convert ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["own", "saelens", "sparsify"])
def test_converted_dictionaries_say_the_same(layout, tmp_path, said):
    coder = SparseCoder.random(64, 96, site="resid.1", activation=TopK(5))
    save({"resid.1": coder}, tmp_path / "before")
    text = said("convert", tmp_path / "before", tmp_path / "after", "--to", layout, "--model", "mine")
    assert "1 dictionary" in text
    (after,) = loaded_dictionaries(str(tmp_path / "after"), None).values()
    x = torch.randn(7, 64)
    torch.testing.assert_close(after.encode(x), coder.encode(x))
    assert f"layout {layout}" in said("inspect", tmp_path / "after")


def test_a_conversion_may_be_to_half_precision_and_of_some_sites(tmp_path, said):
    said("convert", "embedded", tmp_path / "half", "--dtype", "float16", "--site", "resid.1", "mlp.*")
    assert set(load(tmp_path / "half")) == {"resid.1", "mlp.0", "mlp.1", "mlp.2"}
    assert load(tmp_path / "half", dtype=None)["mlp.2"].W_enc.dtype == torch.float16


def test_what_a_layout_cannot_hold_is_refused_and_leaves_nothing(tmp_path, mistake):
    line = mistake("convert", "embedded", tmp_path / "out", "--to", "sparsify")
    assert "sparsify knows TopK and GroupMax, not BatchTopK" in line
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced_by_a_conversion(trained, tmp_path, mistake):
    assert "not empty" in mistake("convert", "embedded", trained)
    (tmp_path / "file").write_text("")
    assert "is there already" in mistake("convert", "embedded", tmp_path / "file")


# --- compare ------------------------------------------------------------------------------------------------


def test_compare_says_what_the_library_finds(trained, tmp_path, said):
    text = said("compare", trained / "seed-0", trained / "seed-1", "--out", tmp_path / "c.json")
    record = json.loads((tmp_path / "c.json").read_text())
    one, other = (load(trained / f"seed-{seed}") for seed in (0, 1))
    for row in record["pairs"]:
        found = overlap(one[row["site"]], other[row["site"]])
        assert row["shared"] == pytest.approx(found.shared)
        assert row["mean_max_cosine"] == pytest.approx(found.mean_max)
        assert row["chance"] == pytest.approx(found.chance)
        assert f"{found.shared:.1%}" in text


def test_several_are_compared_two_by_two(trained, tmp_path, said):
    a, b = trained / "seed-0", trained / "seed-1"
    text = said("compare", a, b, a, "--site", "resid.1", "--draw", tmp_path / "overlap.svg")
    assert "seed-0 ~ seed-1" in text and "shared, mean over sites" in text and "100.0%" in text
    assert "<svg" in (tmp_path / "overlap.svg").read_text()


def test_of_a_larger_dictionary_it_is_said_how_much_is_new(tmp_path, said):
    small = SparseCoder.random(16, 20, site="mlp.0")
    rows = torch.cat([small.W_dec, SparseCoder.random(16, 20, seed=5).W_dec])
    large = SparseCoder(W_enc=rows.T, b_enc=torch.zeros(40), W_dec=rows, b_dec=torch.zeros(16),
                        activation=small.activation, site="mlp.0")  # fmt: skip
    save({"mlp.0": small}, tmp_path / "small")
    save({"mlp.0": large}, tmp_path / "large")
    text = said("compare", tmp_path / "small", tmp_path / "large", "--threshold", "0.95")
    assert "20 ~ 40" in text and "new in the larger" in text and "50.0%" in text and "100.0%" in text


# --- mistakes, help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "--recipe", "l1", "--k", "3"], "The recipe l1 takes --weight, not --k."),
        (["train", "--sites", "reside.*"], "No site 'reside.*'"),
        (["train", "--text", "nowhere.txt"], "'nowhere.txt'"),
        (["train", "--sites", "mlp_in.0->attn.0"], "mlp_in.0 comes after attn.0"),
        (["train", "--sites", "resid.0", "--skip"], "--skip is for transcoders"),
        (["train", "--context", "9999"], "give a context up to that, not 9999"),
        (["train", "--steps", "many"], "'many' is not a number such as 5000, 20k or 1M"),
        (["train", "--seeds", "1,1"], "'1,1' are not different numbers such as 0,1,2"),
        (["train", "--lr", "-1"], "'-1' is not a number above 0"),
        (["train", "--features", "9", "--expansion", "8"], "not allowed with argument"),
        (["train", "--recipe", "magic"], "invalid choice: 'magic'"),
        (["train", "--device", "cupboard"], "No device 'cupboard'"),
        (["train", "--features", "8", "--sites", "resid.1"], "needs more than 8 features to choose from"),
        (
            ["train", "--tokens", "1k", "--batch-size", "5000"],
            "A batch of 5000 positions needs a larger pool",
        ),
        (["inspect", "/nowhere"], "/nowhere"),
        (["inspect", "embedded", "--feature", "3"], "Feature 3 of which site? Give --site, or embed/3."),
        (["inspect", "embedded", "--feature", "x"], "'x' is no feature"),
        (["inspect", "embedded", "--feature", "resid.7/3"], "No dictionary at 'resid.7'; there are embed"),
        (["inspect", "embedded", "--feature", "resid.1/999", "--tokens", "1k"], "No feature 999 at resid.1"),
        (["inspect", "embedded", "--site", "reside"], "No site matches 'reside'; there are embed"),
        (["inspect", "embedded", "--out", "page.html"], "say which, by --feature, --top or --random"),
        (["inspect", "embedded", "--top", "3", "--out", "page.pdf"], "such as page.html, not 'page.pdf'"),
        (["inspect", "embedded", "--top", "1000"], "are too many to look at"),
        (["compare", "embedded"], "Give two sets of dictionaries, or more."),
        (["convert", "embedded", "out", "--to", "elsewhere"], "invalid choice: 'elsewhere'"),
    ],
    ids=lambda value: " ".join(value)[:44] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_says_what_would_do(argv, says, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    line = mistake(*argv)
    assert line.startswith("circuits: error: ") and says in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing stands in another try's way


def test_text_that_is_not_there_is_a_mistake_without_the_library_for_datasets_too(
    tmp_path, monkeypatch, mistake
):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "empty.txt").touch()
    for name, says in (("nowhere.txt", "There is no file"), ("empty.txt", "There is no text in")):
        line = mistake("train", "--text", tmp_path / name, "--out", tmp_path / "out", *TINY)
        assert says in line and name in line


def test_a_model_is_put_on_one_device_which_needs_nothing_beside_torch(said, monkeypatch):
    asked = []

    def load(*args, original=Model.load, **settings):
        asked.append(settings["device"])
        return original(*args, **settings)

    monkeypatch.setattr(Model, "load", load)
    said("inspect", "embedded", "--model", "embedded", "--site", "resid.0")
    assert asked == ["cuda" if torch.cuda.is_available() else "cpu"]


def test_features_of_dictionaries_from_elsewhere_need_a_model(tmp_path, mistake):
    save({"resid.1": SparseCoder.random(64, 96, site="resid.1")}, tmp_path)
    assert "give --model" in mistake("inspect", tmp_path, "--feature", "3")


def test_help_does_not_wait_for_torch():
    script = """
import sys
from circuits.__main__ import main
for name in ("train", "inspect", "convert", "compare"):
    assert main(["dictionaries", name, "--help"]) == 0
assert main(["dictionaries"]) == 0
print("torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "False"
    assert all(len(line) <= 100 for line in out.stdout.splitlines())


def test_an_interruption_says_how_to_go_on(tmp_path, corpus, monkeypatch, mistake):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dictionary_training, "_trained", stop)
    line = mistake("train", "--text", corpus, "--sites", "resid.1", *TINY, "--out", tmp_path, "-q", code=130)
    assert line == f"circuits: Interrupted. The same command goes on from {tmp_path / 'checkpoint'}."


def test_an_interrupted_training_goes_on_to_the_same_dictionaries(
    trained, corpus, tmp_path, monkeypatch, said
):
    steps: list[int] = []

    def advance(self, *args, original=Trainee.advance, **settings):
        steps.append(1)
        if len(steps) == 50:
            raise KeyboardInterrupt
        return original(self, *args, **settings)

    monkeypatch.setattr(Trainee, "advance", advance)
    monkeypatch.setattr(dictionary_training, "_EVERY", 5)
    argv = ["train", "--text", corpus, "--sites", "resid.1", "mlp_in.0->mlp.0", "--skip", *TINY]
    argv += ["--k", "4", "--seeds", "0,1", "--out", tmp_path]
    assert dictionaries(*argv) == 130
    assert (tmp_path / "checkpoint").exists() and not list(tmp_path.glob("**/index.json"))
    steps[:] = [1] * 50
    assert "from step 10 of 30 on" in said(*argv)
    assert len(steps) - 50 == 4 * (30 - 10)  # from step 10 on, for four dictionaries
    assert not (tmp_path / "checkpoint").exists()
    for seed in (0, 1):
        before, after = (load(folder / f"seed-{seed}") for folder in (trained, tmp_path))
        assert {n: d.fingerprint for n, d in before.items()} == {n: d.fingerprint for n, d in after.items()}


def test_what_a_model_wrote_is_not_written_again_after_an_interruption(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    argv = ["train", "--sites", "resid.1", *TINY, "--k", "4", "--out", tmp_path, "-q"]
    with monkeypatch.context() as patched:
        patched.setattr(dictionary_training, "_trained", stop)
        assert dictionaries(*argv) == 130
    asked = []

    def counted(*args, **settings):
        asked.append(settings["n"])
        return rows(*args, **settings)

    monkeypatch.setattr(dictionary_training, "rows", counted)
    assert dictionaries(*argv) == 0
    assert asked == [8]  # those to test on
    assert dictionaries(*argv) == 0
    assert asked == [8, 8]


def test_metrics_are_logged_as_lines_of_json(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {
        f"seed-{i}/{site}" for i in (0, 1) for site in ("resid.1", "mlp.0")
    }
    assert all(0 < line["fvu"] < 2 and line["step"] == 30 for line in lines)


# --- another model ------------------------------------------------------------------------------------------


def test_a_model_of_stories_gets_dictionaries_and_pages(tmp_path, said):
    if not (WEIGHTS / "stories260K").exists():
        pytest.skip("the weights of the model of stories are not here")
    argv = ["--model", WEIGHTS / "stories260K", "--sites", "resid.2", *TINY, "--out", tmp_path / "d"]
    assert "recovered" in said("train", *argv)
    page = tmp_path / "page.html"
    assert "2 features" in said("inspect", tmp_path / "d", "--top", "2", "--tokens", "1k", "--out", page)
    assert "stories260K" in page.read_text()
