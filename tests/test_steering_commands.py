from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from circuits import embedded, steering_options
from circuits.__main__ import main
from circuits.parser import parser
from circuits.question import part
from circuits.steering_commands import METHODS, Extraction
from circuits.steering_folder import Change, steered
from circuits.steering_measures import Trial
from circuits.steering_sets import SETS, pairs, questions
from circuits.token_words import choice, clause
from interventions import Add, applied
from interventions.model import Model
from interventions.recurrence import State, read_state
from interventions.steering import After, Direction, Position, contrast, differing
from interventions.steering.dose_response import DoseResponse
from interventions.steering.likelihood import prompt_ids
from interventions.steering.sweep import LayerSweep
from interventions.where import Where, after, at, span
from tasks import ChoiceSet, ContrastSet, sycophancy
from tasks.grammar import tokenizer

FEW = ["-n", "8", "--bootstrap", "5", "--no-draw"]


def steer(*argv: object) -> int:
    return main(["steer", *map(str, argv)])


command = steer


@pytest.fixture(scope="module")
def model() -> Model:
    return embedded.model()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steering") / "found"
    assert steer("extract", *FEW, "--out", folder, "-q") == 0
    return folder


@pytest.fixture
def found(extracted, tmp_path) -> Path:
    """A copy that a test may write into."""
    folder = tmp_path / "found"
    folder.mkdir()
    for path in extracted.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory) -> Path:
    """A tiny Mamba that reads the words of the shipped model."""
    folder = tmp_path_factory.mktemp("models") / "mamba"
    words = tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=None
    )
    MambaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


# --- extract ------------------------------------------------------------------------------------------------


def test_what_is_extracted_is_the_library_s_direction(extracted, model):
    kept = Direction.load(extracted)
    made = contrast(model, SETS["plural_singular"](n=8), [f"resid.{i}" for i in range(3)])
    assert kept.check(model).cosine(made) == pytest.approx(dict.fromkeys(kept, 1.0))
    run = json.loads((extracted / "settings.json").read_text())["steer extract"]
    assert run["command"].startswith("circuits steer extract -n 8")
    assert run["options"]["pairs"] == "plural_singular" and run["options"]["tokens"] == "last"
    assert run["site"] in kept and run["model"] == model.fingerprint


def test_extracting_says_how_well_each_site_separates_and_what_it_promotes(tmp_path, said):
    text = said("extract", "-n", "8", "--bootstrap", "5", "--sites", "resid.0", "mlp.1", "--out", tmp_path)
    assert "AUROC" in text and "redrawn" in text and "promotes" in text and text.count("*") == 2
    assert " are" in text
    assert {"direction.json", "separation.svg", "similarity.svg", "settings.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("method", steering_options.METHODS)
def test_every_method_finds_the_number_of_the_subject(tmp_path, said, method):
    said("extract", *FEW, "--sites", "resid.2", "--method", method, "--out", tmp_path, "-q")
    kept = Direction.load(tmp_path)
    assert type(METHODS[method]).__name__ in kept.how["method"]
    if method != "centred-pca":  # which finds how pairs differ from each other
        assert kept.how["separation"]["resid.2"]["auroc"] > 0.9


def test_shuffled_labels_are_a_control(tmp_path, said, extracted):
    said("extract", *FEW, "--shuffled", "0", "--out", tmp_path, "-q")
    kept, real = Direction.load(tmp_path), Direction.load(extracted)
    assert abs(kept.norms["resid.2"]) < 0.7 * real.norms["resid.2"]


def test_pairs_come_from_files_of_every_kind(tmp_path, said):
    ContrastSet("mine", [("The boys", "The boy"), ("The girls", "The girl")]).save(tmp_path / "mine.jsonl")
    sycophancy(n=4).save(tmp_path / "lettered.jsonl")
    text = '{"clean": "The dogs", "patch": "The dog", "answers": [" are"], "foils": [" is"]}\n'
    (tmp_path / "task.jsonl").write_text(text)
    assert pairs(str(tmp_path / "mine.jsonl"), n=1, seed=0, ask=None)[0].pairs == (("The boys", "The boy"),)
    lettered, word = pairs(str(tmp_path / "lettered.jsonl"), n=None, seed=0, ask=None)
    assert word == "answer-letter" and all(one[-1] in "AB" for pair in lettered for one in pair)
    assert pairs(str(tmp_path / "task.jsonl"), n=None, seed=0, ask=str.upper)[0][0] == ("THE DOGS", "THE DOG")
    said("extract", "--pairs", tmp_path / "mine.jsonl", "--out", tmp_path / "out", "--no-draw", "-q")
    assert "separation" not in Direction.load(tmp_path / "out").how  # two pairs leave none to hold out


def test_extracting_anew_takes_away_what_was_measured_before(found, said):
    said("sweep", found, "-n", "2", "--multipliers", "1", "--random", "0", "--no-draw", "-q")
    assert (found / "sweep" / "outcomes.json").exists()
    said("extract", *FEW, "--method", "lda", "--out", found, "-q")
    assert not (found / "sweep").exists()
    assert "steer sweep" not in json.loads((found / "settings.json").read_text())


# --- apply --------------------------------------------------------------------------------------------------


def test_a_direction_is_applied_beside_the_unsteered_model(tmp_path, found, said, model):
    out = tmp_path / "texts.json"
    asked = ["--max-new-tokens", "4", "--random-control", "1", "--sites", "resid.1", "--scale", "2"]
    text = said("apply", found, "The boy", "The girl", *asked, "--explain", "--out", out)
    written = json.loads(out.read_text())["texts"]
    assert [each["prompt"] for each in written] == ["The boy", "The girl"]
    options = {"max_new_tokens": 4, "do_sample": False}
    assert written[0]["unsteered"] == model.complete("The boy", **options)
    with applied(model, Add(Direction.load(found).only("resid.1"), scale=2)):
        assert written[0]["steered"] == model.complete("The boy", **options)
    assert written[0]["random 1"] not in ("", written[0]["steered"])
    assert "[ boy]" in text and all(each["steered"] in text for each in written)


def test_what_is_changed_is_said_by_words():
    assert clause("all", "--x") == "all" and clause("none", "--x") is None
    assert clause("last", "--x") == at([-1]) and clause("-1,2", "--x") == at([-1, 2])
    assert clause("1:", "--x") == span(1, None) and clause("after:b:c", "--x") == after("b:c")
    assert choice("position:-2") == Position(-2) and choice("after:is") == After("is")
    assert choice("differing") is differing
    direction = Direction({"resid.0": torch.ones(4)})
    made = steered(direction, Change(prompt_tokens="last", generation_tokens="none", keep_norm=True), 2)
    assert repr(made) == repr(Add(direction, 2).keeping_norm().at(Where(prompt=-1, generation=None)))
    assert repr(steered(direction, Change(project_out=True), 2)).startswith("Project")


def test_the_site_is_the_one_that_the_sweep_or_else_the_extraction_found(found, said):
    best = json.loads((found / "settings.json").read_text())["steer extract"]["site"]
    assert f"Add({best} " in said("apply", found, "The boy", "--max-new-tokens", "1")
    said("sweep", found, "-n", "2", "--sites", "resid.0", "--multipliers", "1", "--random", "0", "-q")
    assert "Add(resid.0 " in said("apply", found, "The boy", "--max-new-tokens", "1")


def test_prompts_may_stand_after_options(found, said):
    asked = ["--scale", "-2", "--max-new-tokens", "2"]
    assert said("apply", found, *asked, "The boy") == said("apply", found, "The boy", *asked)


def test_drawn_texts_are_the_same_for_the_same_seed(found, said):
    asked = ["apply", found, "The boy", "--sample", "--temperature", "0.9", "--max-new-tokens", "5"]
    assert said(*asked) == said(*asked) != said(*asked, "--seed", "1")


def test_a_control_vector_is_written(tmp_path, found, said):
    gguf = pytest.importorskip("gguf")
    said("apply", found, "--sites", "resid.1", "--scale", "3", "--export-gguf", tmp_path / "v.gguf")
    (tensor,) = gguf.GGUFReader(tmp_path / "v.gguf").tensors
    assert tensor.name == "direction.1"
    torch.testing.assert_close(torch.tensor(tensor.data), 3 * Direction.load(found)["resid.1"].float())


# --- sweep and evaluate -------------------------------------------------------------------------------------


def test_a_sweep_measures_every_site_and_is_gone_on_with(found, said):
    asked = ["sweep", found, "-n", "4", "--multipliers", "-1", "1"]
    text = said(*asked)
    swept = LayerSweep.load(found / "sweep")
    assert swept.sites == ("resid.0", "resid.1", "resid.2") and swept.measures == ("preference", "divergence")
    assert all(swept.effect("preference", site, 1).mean > 1 for site in swept.sites)
    run = json.loads((found / "settings.json").read_text())["steer sweep"]
    assert f"Most preference at {run['site']} times 1" in text and (found / "sweep.svg").exists()
    said(*asked[:-1], "2", "1", "-q")  # further multipliers
    assert LayerSweep.load(found / "sweep").multipliers == (-1.0, 0.0, 1.0, 2.0)


def test_an_evaluation_has_its_controls_and_other_questions_than_the_sweep(found, said):
    text = said("evaluate", found, "-n", "4", "--multipliers", "-1", "1", "--random", "2")
    kept = DoseResponse.load(found / "evaluation")
    assert kept.arms == ("steered", "random", "prompted")
    assert kept.effect("preference", 1).mean > 2 and kept.effect("preference", -1).mean < -2
    assert "prompted: 'The boys are happy. '" in text and (found / "evaluation.svg").exists()
    first, second = (questions("plural_singular").half(i) for i in (0, 1))
    assert not {item[0] for item in first.items} & {item[0] for item in second.items}


def test_what_the_model_writes_is_measured_and_shown(found, said, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The boy\nThe girl near the car\n")
    asked = ["--measure", "keywords", "fluency", "refusal", "--keywords", "are", "were", "--random", "0"]
    text = said(
        "evaluate", found, "--questions", prompts, *asked, "--multipliers", "3", "--max-new-tokens", "6",
        "--no-draw",
    )  # fmt: skip
    kept = DoseResponse.load(found / "evaluation")
    assert kept.measures == ("keywords", "surprise", "distinct", "refusal")
    assert kept.effect("keywords", 3).mean > 0 and "\n      3  " in text


def test_answers_and_foils_are_compared_after_every_prompt(found, said, tmp_path):
    (tmp_path / "prompts.txt").write_text("The boy\nThe girl\n")
    asked = ["--questions", tmp_path / "prompts.txt", "--answers", " are", "--foils", " is", "--random", "0"]
    said("evaluate", found, *asked, "--multipliers", "1", "--measure", "preference", "-q", "--no-draw")
    assert DoseResponse.load(found / "evaluation").effect("preference", 1).mean > 2


def test_lettered_questions_are_asked_up_to_the_letter(tmp_path):
    sycophancy(n=6).save(tmp_path / "test.jsonl")
    found = questions(str(tmp_path / "test.jsonl"))
    assert found.measure == "matching" and found.items[0][1:] in (("A", "B"), ("B", "A"))
    assert {item[1] for item in questions("sycophancy").half(0).items} == {"A", "B"}
    assert isinstance(ChoiceSet.load(tmp_path / "test.jsonl"), ChoiceSet)


def test_other_options_are_another_run(found, said, mistake):
    asked = ["evaluate", found, "--multipliers", "1", "--random", "0", "--no-draw"]
    said(*asked, "-n", "2", "-q")
    line = mistake(*asked, "-n", "3", "--instruction", "The boy")
    assert "another --examples, --instruction" in line and "--fresh" in line
    said(*asked, "-n", "3", "--fresh", "-q")


@pytest.mark.parametrize("name", SETS)
def test_every_built_in_set_has_pairs_and_questions(name):
    made, word = pairs(name, n=4, seed=0, ask=None)
    assert len(made) == 4 and word in ("last", "answer-letter")
    asked = questions(name)
    assert len(asked) >= 12 and asked.instruction and len(asked.half(0)) + len(asked.half(1)) == len(asked)


# --- state --------------------------------------------------------------------------------------------------


def test_the_difference_of_states_is_found_applied_and_measured(tmp_path, recurrent, said):
    folder = tmp_path / "found"
    asked = ["extract", "--model", recurrent, "--state", "-n", "6", "--bootstrap", "5", "--out", folder]
    assert "recurrent.0" in said(*asked)
    model, (chosen, _) = Model.load(recurrent), pairs("plural_singular", n=6, seed=0, ask=None)
    sides = [
        read_state(model, [prompt_ids(model, text) for text in texts]).mean()
        for texts in (chosen.positive, chosen.negative)
    ]
    kept, wanted = State.load(folder), sides[0] - sides[1]
    for name in wanted:
        torch.testing.assert_close(kept[name], wanted[name])
    text = said("apply", folder, "The boy", "--max-new-tokens", "3", "--explain", "--random-control", "0")
    assert "AddState(1 * conv.0, recurrent.0" in text and "random 0:" in text
    said("evaluate", folder, "-n", "4", "--multipliers", "4", "--random", "1", "--no-draw", "-q")
    kept = DoseResponse.load(folder / "evaluation")
    assert kept.random == 1 and float(kept.effect("divergence", 4).mean) > 0


# --- mistakes -----------------------------------------------------------------------------------------------


def test_mistakes_of_extraction_are_one_line(tmp_path, mistake):
    out = ["--out", tmp_path / "out"]
    assert "No pairs 'nothing'" in mistake("extract", "--pairs", "nothing", *out)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "is empty" in mistake("extract", "--pairs", empty, *out)
    empty.write_text('{"positive": "The boy", "negative": "The boy"}\n')
    assert "line 1" in mistake("extract", "--pairs", empty, *out)
    empty.write_text('{"contrast": "none"}\n')
    assert "no pairs" in mistake("extract", "--pairs", empty, *out)
    assert "No site matches 'resid.9'" in mistake("extract", *FEW, "--sites", "resid.9", *out)
    assert "position 9 is out of range" in mistake("extract", *FEW, "--tokens", "position:9", *out)
    assert "--tokens 'first' is none of" in mistake("extract", *FEW, "--tokens", "first", *out)
    assert "Mamba" in mistake("extract", *FEW, "--state", *out)  # which families have a state
    assert "--state takes the mean" in mistake("extract", *FEW, "--state", "--method", "lda", *out)
    assert "no chat template" in mistake("extract", *FEW, "--chat", *out)
    assert not (tmp_path / "out" / "direction.json").exists()


def test_mistakes_of_application_are_one_line(tmp_path, found, mistake):
    assert "no direction in" in mistake("apply", tmp_path / "nowhere", "The boy")
    assert "give a prompt" in mistake("apply", found)
    assert "before --sites" in mistake("apply", found, "--sites", "resid.1", "The boy")
    assert "is empty" in mistake("apply", found, " ")
    assert "No site matches 'mlp.0'" in mistake("apply", found, "The boy", "--sites", "mlp.0")
    assert "Position 9 is out of range" in mistake("apply", found, "The boy", "--prompt-tokens", "9")
    assert "--prompt-tokens 'some'" in mistake("apply", found, "The boy", "--prompt-tokens", "some")
    assert "give --sample" in mistake("apply", found, "The boy", "--top-k", "3")
    assert "resid.0" in mistake("apply", found, "--sites", "resid.0", "--export-gguf", tmp_path / "v.gguf")
    placed = ["--sites", "resid.1", "--prompt-tokens", "last"]
    assert "at all tokens" in mistake("apply", found, *placed, "--export-gguf", tmp_path / "v.gguf")


def test_directions_that_do_not_fit_the_model_are_refused(tmp_path, found, recurrent, mistake):
    assert "another model" in mistake("apply", found, "The boy", "--model", recurrent)
    Direction({"resid.0": torch.ones(5)}).save(tmp_path / "narrow")
    assert "does not say which model" in mistake("apply", tmp_path / "narrow", "The boy")
    line = mistake("apply", tmp_path / "narrow", "The boy", "--model", "embedded")
    assert "width 5" in line and "64" in line
    Direction({"resid.7": torch.ones(64)}).save(tmp_path / "deep")
    assert "resid.7" in mistake("apply", tmp_path / "deep", "The boy", "--model", "embedded")


def test_mistakes_of_measuring_are_one_line(tmp_path, found, mistake):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n")
    assert "no prompts" in mistake("evaluate", found, "--questions", prompts)
    prompts.write_text("The boy\n")
    asked = ["evaluate", found, "--questions", prompts, "--measure"]
    assert "--answers and --foils" in mistake(*asked, "preference")
    assert "lettered questions" in mistake(*asked, "matching")
    assert "Give --keywords" in mistake(*asked, "keywords")
    assert "give both" in mistake(*asked, "preference", "--answers", " is")
    assert "beside 0" in mistake("evaluate", found, "--multipliers", "0")
    assert "No questions 'nothing'" in mistake("sweep", found, "--questions", "nothing")


# --- options ------------------------------------------------------------------------------------------------


def test_defaults_of_the_command_line_are_those_of_the_library():
    given = vars(parser().parse_args(["steer", "extract"]))
    assert part(Extraction, {**given, "sites": tuple(given["sites"])}) == Extraction()
    given = vars(parser().parse_args(["steer", "evaluate", "x"]))
    assert part(Trial, given) == Trial(folder="x")
    assert set(steering_options.METHODS) == set(METHODS)


@pytest.mark.parametrize("command", ["", "extract", "apply", "sweep", "evaluate"])
def test_help_has_examples_and_fits_a_terminal(capsys, command):
    assert main(["steer", *([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text and max(map(len, text.splitlines())) <= 110


def test_every_built_in_set_is_in_the_help(capsys):
    main(["steer", "extract", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in SETS)


@pytest.mark.parametrize("command", [["sweep"], ["evaluate"], ["apply", "The boys"]])
def test_a_folder_without_a_direction_is_named_before_anything_else(mistake, tmp_path, command):
    assert "There is no direction in" in mistake(command[0], tmp_path / "none", *command[1:])


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_a_scale_is_finite(mistake, tmp_path, scale):
    assert "--scale is a finite number" in mistake("apply", tmp_path, "The boys", f"--scale={scale}")
