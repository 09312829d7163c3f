from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import circuits
from circuits import commands, embedded, question, trial
from circuits.__main__ import main
from circuits.checkpoint import Checkpoint
from circuits.graph import Circuit
from circuits.parser import parser
from interventions.model import Model
from tasks import METRICS, Pair, Task, agreement_across_rc

SMALL = ["-n", "12", "--node", "20", "--edge", "40"]
FILES = {
    "circuit.json", "circuit.safetensors", "circuit.svg", "circuit.dot", "curve.json", "curve.svg",
    "evaluation.json", "settings.json",
}  # fmt: skip


def settings(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


def evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def same(one: Circuit, other: Circuit) -> bool:
    tensors = ("effect", "effect_error", "edges", "weight", "weight_error")
    equal = [torch.allclose(getattr(one, t), getattr(other, t), 0, 0, equal_nan=True) for t in tensors]
    return one.nodes == other.nodes and all(equal)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command line") / "found"
    assert main(["find", *SMALL, "--out", str(folder)]) == 0
    return folder


def command(*argv: object) -> int:
    return main([str(word) for word in argv])


# --- find ---------------------------------------------------------------------------------------------------


def test_find_writes_everything_and_cleans_up(found):
    assert {path.name for path in found.iterdir()} == FILES


def test_find_finds_what_the_library_finds(found):
    model = embedded.model()
    first, second = agreement_across_rc(n=12).split(0.5, 0)
    dictionaries = embedded.dictionaries()
    circuit = circuits.find(model, first, dictionaries, node=20, edge=40)
    assert same(circuit, Circuit.load(found))
    tested = circuits.Evaluation(model, second, dictionaries, batch_size=16)
    assert evaluation(found)["faithfulness"] == asdict(tested.faithfulness(circuit))
    assert evaluation(found)["completeness"] == asdict(tested.completeness(circuit))


def test_find_says_what_it_found_and_how_good_it_is(tmp_path, capfd):
    assert main(["find", *SMALL, "--out", str(tmp_path), "--no-draw"]) == 0
    said = capfd.readouterr().out
    assert "6 pairs to find on, 6 others to test on" in said
    assert "Circuit('agreement_across_rc', 20 nodes, 40 edges)" in said
    assert "Faithfulness" in said and "with as many at random" in said
    assert "Tested on 6 held-out pairs" in said
    assert all(len(line) <= 100 for line in said.replace(str(tmp_path), "").splitlines())
    assert not list(tmp_path.glob("*.svg"))


def test_settings_say_how_the_results_were_made(found):
    run = settings(found)["find"]
    assert run["command"].startswith("circuits find -n 12 --node 20")
    assert run["options"]["task"] == "agreement_across_rc"
    assert run["options"]["examples"] == 12
    assert run["options"]["dictionaries"] == "embedded"
    assert run["fingerprints"]["model"] == embedded.model().fingerprint
    assert len(run["fingerprints"]["dictionaries"]) == 10
    assert run["versions"]["torch"] == torch.__version__
    assert set(run["seconds"]) == {"loading", "finding", "testing", "drawing", "all"}
    assert run["peak_memory"]["process"] > 10**6


def test_files_can_be_read_by_whom_the_user_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        assert main(["find", *SMALL, "--out", str(tmp_path), "--no-draw", "-q"]) == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_an_interrupted_run_goes_on_to_the_same_circuit(found, tmp_path, monkeypatch, mistake, capfd):
    argv = ["find", *SMALL, "--batch-size", "2", "--out", tmp_path]
    saved = []

    def save(self, number, effects, original=Checkpoint.save_effects):
        original(self, number, effects)
        saved.append(number)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save_effects", save)
    line = mistake(*argv, code=130)
    assert line == f"circuits: Interrupted. The same command goes on from {tmp_path / 'checkpoint'}."
    assert main([str(word) for word in argv]) == 0
    assert "2 batches are in" in capfd.readouterr().out
    assert saved == [0, 1, 2]
    assert not (tmp_path / "checkpoint").exists()
    circuit = Circuit.load(tmp_path)
    assert circuit.nodes == Circuit.load(found).nodes
    assert torch.allclose(circuit.weight, Circuit.load(found).weight, atol=1e-4)


def test_a_checkpoint_of_another_run_is_refused_until_told_otherwise(tmp_path, mistake, capfd):
    argv = ["find", *SMALL, "--out", tmp_path, "--no-draw", "--keep-checkpoint"]
    assert main([str(word) for word in argv]) == 0
    line = mistake(*argv, "--seed", 1)
    assert "differs in task" in line and "--fresh" in line and "--out" in line
    assert main([str(word) for word in [*argv, "--seed", 1, "--fresh"]]) == 0
    assert main([str(word) for word in [*argv, "--seed", 1, "--node", "10%"]]) == 0
    assert "1 batches are in" in capfd.readouterr().out


def test_a_run_interrupted_in_its_test_says_how_to_go_on(tmp_path, monkeypatch, mistake):
    def curve(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial._Watched, "curve", curve)
    line = mistake("find", *SMALL, "--out", tmp_path, "-q", code=130)
    assert f"`circuits evaluate {tmp_path}` tests it" in line
    monkeypatch.undo()
    assert main(["evaluate", str(tmp_path), "-q"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--dictionaries", "neurons", "--sites", "resid.*", "embed", "--method", "attribution-patching"],
        ["--per-position", "--edge", "1%", "--steps", "2", "--errors", "kept", "--start-layer", "1"],
        ["--edge", "none", "--method", "input-integrated-gradients", "--ablation", "resample"],
        ["--held-out", "0", "--metric", "log-probability", "--ablation", "zero", "--dtype", "float64"],
    ],
    ids=lambda options: options[0],
)
def test_options_reach_the_library(options, tmp_path):
    argv = [
        "find",
        "-n",
        "8",
        "--node",
        "15",
        "--edge",
        "30",
        *options,
        "--out",
        str(tmp_path),
        "-q",
        "--no-draw",
    ]
    assert main(argv) == 0
    circuit, used = Circuit.load(tmp_path), settings(tmp_path)["find"]["options"]
    assert used["method"].replace("-", "_") in circuit.about["method"]
    assert (circuit.positions is not None) == used["per_position"]
    assert (circuit.edges.shape[1] == 0) == (used["edge"] == "none")
    assert set(circuit.features) <= set(embedded.model().sites)
    if used["sites"]:
        assert set(circuit.features) == {"embed", "resid.0", "resid.1", "resid.2"}
    if used["metric"]:
        assert circuit.about["task"]["metric"] == "LogProbability()"
        assert evaluation(tmp_path)["accuracy"] is None
    assert evaluation(tmp_path)["ablation"] == used["ablation"]
    assert evaluation(tmp_path)["examples"] == (8 if used["held_out"] == 0 else 4)


def test_a_task_of_ones_own_is_found_again_from_elsewhere(tmp_path, monkeypatch):
    agreement_across_rc(n=12).save(tmp_path / "mine.jsonl")
    monkeypatch.chdir(tmp_path)
    assert main(["find", "--task", "mine.jsonl", "--node", "20", "--edge", "40", "-q"]) == 0
    monkeypatch.chdir("/")
    folder = tmp_path / "results" / "mine"
    before = evaluation(folder)
    assert main(["evaluate", str(folder), "-q"]) == 0
    assert evaluation(folder) == before


# --- evaluate, draw -----------------------------------------------------------------------------------------


def test_evaluate_repeats_the_test_of_find(found, tmp_path):
    assert main(["evaluate", str(found), "--out", str(tmp_path)]) == 0
    assert evaluation(tmp_path) == evaluation(found)
    assert {path.name for path in tmp_path.iterdir()} == {
        "curve.json", "curve.svg", "evaluation.json", "settings.json",
    }  # fmt: skip
    assert settings(tmp_path)["evaluate"]["circuit"] == str(found.resolve())


def test_evaluate_takes_other_options_and_other_tasks(found, tmp_path, capfd):
    argv = ["evaluate", str(found), "--task", "agreement_across_rc", "-n", "6", "--ablation", "zero"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    result = evaluation(tmp_path)
    assert (result["task"], result["examples"], result["held_out"]) == ("agreement_across_rc", 6, False)
    assert result["ablation"] == "zero"
    assert "Tested on 6 pairs; what is outside the circuit takes the value 0." in capfd.readouterr().out


def test_evaluate_keeps_what_find_noted(found, tmp_path):
    Circuit.load(found).save(tmp_path)
    (tmp_path / "settings.json").write_bytes((found / "settings.json").read_bytes())
    assert main(["evaluate", str(tmp_path), "-q", "--no-draw"]) == 0
    assert set(settings(tmp_path)) == {"find", "evaluate"}


def test_evaluate_without_settings_takes_the_defaults_and_says_so(found, tmp_path, capfd):
    Circuit.load(found).top(5).save(tmp_path)
    assert main(["evaluate", str(tmp_path), "-n", "4", "--no-draw"]) == 0
    assert "has no settings.json of `circuits find`" in capfd.readouterr().out


def test_a_circuit_of_positions_is_not_tested_on_prompts_of_another_length(tmp_path, mistake):
    argv = ["find", "-n", "6", "--node", "9", "--edge", "none", "--per-position", "--no-draw", "-q"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    line = mistake("evaluate", tmp_path, "--task", "agreement_simple", "-q")
    assert "at each of 7 positions" in line and "prompts of 3 tokens" in line


def test_draw_needs_no_model(found, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Model, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    names = tmp_path / "names.json"
    node = str(Circuit.load(found).top(1).nodes[0])
    names.write_text(json.dumps({node: "the\x1b[31m number"}))
    picture = tmp_path / "new" / "picture.svg"
    assert main(["draw", str(found), "--nodes", "5", "--annotations", str(names), "--out", str(picture)]) == 0
    assert "5 nodes" in capfd.readouterr().out
    drawn = picture.read_text()
    assert "number" in drawn and "\x1b" not in drawn
    assert not (picture.parent / "settings.json").exists()


def test_draw_draws_into_the_folder_and_notes_it(found, tmp_path):
    for name in ("circuit.json", "circuit.safetensors", "curve.json", "settings.json"):
        (tmp_path / name).write_bytes((found / name).read_bytes())
    assert main(["draw", str(tmp_path), "--format", "png", "--edges", "none", "-q"]) == 0
    assert (tmp_path / "circuit.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert settings(tmp_path)["draw"]["options"]["edges"] == "none"


# --- tasks, models ------------------------------------------------------------------------------------------


def test_tasks_are_listed_shown_and_tried_out(capfd):
    assert main(["tasks"]) == 0
    said = capfd.readouterr().out
    assert all(name in said for name in question.TASKS)
    assert main(["tasks", "agreement_simple", "-n", "3"]) == 0
    said = capfd.readouterr().out
    assert agreement_across_rc.__name__ not in said and "3 pairs, metric logit difference" in said
    assert main(["tasks", "agreement_simple", "-n", "30", "--model", "embedded"]) == 0
    said = capfd.readouterr().out
    assert "... and 20 more" in said and "right on 100.0%" in said
    assert main(["tasks", "induction", "-n", "3", "--model", "embedded"]) == 0


def test_models_shows_every_kind_of_site(capfd):
    assert main(["models"]) == 0
    said = capfd.readouterr().out
    assert all(stem in said for stem in ("embed ", "attn.*", "mlp_in.*", "resid.*", "LlamaForCausalLM"))
    assert "opens a text with <bos>" in said


def test_nothing_that_files_hold_controls_the_terminal(tmp_path, capfd, mistake):
    evil = "\x1b[2J\x9b31m\u202e"
    pair = Pair(f"The {evil} boy", None, (f" is{evil}",), case=evil)
    Task(f"evil{evil}", [pair], description=evil).save(tmp_path / "t.jsonl")
    assert main(["tasks", str(tmp_path / "t.jsonl")]) == 0
    assert not (set(evil) - set("[2J31m")) & set(capfd.readouterr().out)
    line = mistake("tasks", tmp_path / "t.jsonl", "--model", "embedded")
    assert not (set(evil) - set("[2J31m")) & set(line)


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--task", "agreement"], "No task 'agreement', nor such a file. Built in are agreement_simple,"),
        (["--task", "pronouns"], "No pair of pronouns fits this tokenizer"),
        (["--sites", "reside.*"], "No site matches 'reside.*'; there are embed, attn.*, mlp.*, resid.*."),
        (["--dictionaries", "nowhere"], "There is no folder 'nowhere' of dictionaries"),
        (["--dictionaries", "docs"], "no known format of dictionaries has these files"),
        (["--model", "/nowhere"], "There is nothing at '/nowhere'."),
        (["-n", "10000000"], "different pairs to choose from: cannot choose 10000000."),
        (["-n", "1"], "--held-out 0 tests on the pairs it finds on."),
        (["-n", "0"], "'0' is not a number 1, 2, 3, ..."),
        (["--node", "some"], "'some' is none of 100 (so many), 0.1 (above), 90% (a share)"),
        (["--node", "1000.5", "-n", "4"], "No node"),
        (["--held-out", "1"], "'1' is not a portion such as 0.3 or 30%"),
        (["--metric", "fame"], "--metric: invalid choice: 'fame'"),
        (["--device", "cuda:99"], "There is no device cuda:99 on this machine."),
        (["--device", "cupboard"], "No device 'cupboard'"),
        (["--start-layer", "9", "-n", "4"], "start_layer goes from 0 to 2; it is 9"),
        (["--annotations", "nowhere.json"], "There is no file of annotations nowhere.json."),
        (["--method", "attribution-patching", "--steps", "3"], "attribution patching has none"),
        (["--knots", "5"], "unrecognized arguments: --knots 5"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_says_what_would_do(argv, says, tmp_path, mistake):
    line = mistake("find", *argv, "--out", tmp_path, "-q")
    assert line.startswith("circuits: error: ") and says in line


def test_more_pairs_than_a_file_has_are_refused(tmp_path, mistake):
    agreement_across_rc(n=3).save(tmp_path / "t.jsonl")
    line = mistake("find", "--task", tmp_path / "t.jsonl", "-n", 4, "--out", tmp_path / "out", "-q")
    assert line.endswith("t.jsonl has 3 pairs: cannot take 4.")


def test_a_folder_that_cannot_be_written_to_is_a_mistake(tmp_path, mistake):
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in mistake("find", *SMALL, "--out", tmp_path / "file" / "sub")


def test_settings_of_something_else_are_left_alone(found, tmp_path, mistake):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 14}')
    assert "is a file of something else" in mistake("find", *SMALL, "--out", tmp_path, "-q")
    assert "is a file of something else" in mistake("evaluate", found, "--out", tmp_path, "-q")
    assert settings(tmp_path) == {"editor.fontSize": 14}


def test_circuits_that_are_missing_or_damaged_are_mistakes(found, tmp_path, mistake):
    for command in ("evaluate", "draw"):
        assert "No circuit in" in mistake(command, tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()
    for name in ("circuit.json", "circuit.safetensors", "settings.json"):
        (tmp_path / name).write_bytes((found / name).read_bytes())
    (tmp_path / "circuit.safetensors").write_bytes(b"\0" * 40)
    for command in ("evaluate", "draw"):
        assert "is damaged or was changed" in mistake(command, tmp_path)


def test_a_circuit_is_not_tested_in_another_model(found, tmp_path, mistake):
    line = mistake("evaluate", found, "--dictionaries", "neurons", "--out", tmp_path, "-q")
    assert "found with another dictionary" in line


def test_errors_of_ours_show_where_they_arose(tmp_path, monkeypatch, capfd):
    def fail(*_, **__):
        return {}["a bug"]

    monkeypatch.setattr(commands, "find", fail)
    assert main(["find", "--out", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "Traceback" in said and said.splitlines()[-1] == "circuits: error: 'a bug'"


def test_debug_shows_where_a_mistake_was_noticed(tmp_path, capfd):
    assert main(["find", "--task", "none", "--debug", "--out", str(tmp_path)]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_out_of_memory_says_which_option_to_change(tmp_path, monkeypatch, mistake):
    def full(*_, **__):
        raise RuntimeError("CUDA out of memory")

    task = agreement_across_rc(n=4)
    asked = question.Asked(embedded.model(), embedded.dictionaries(), task, task)
    monkeypatch.setattr(commands, "asked_for", lambda *_, **__: asked)
    monkeypatch.setattr(Model, "logits", full)
    assert "try --batch-size 8." in mistake("find", *SMALL, "--out", tmp_path, "-q")


# --- the command itself -------------------------------------------------------------------------------------


def test_help_does_not_wait_for_torch():
    script = """
import sys
from circuits.__main__ import main
assert main(["--help"]) == 0 and main(["find", "--help"]) == 0 and main([]) == 0 and main(["--version"]) == 0
print("torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "False"


def test_quiet_says_nothing(tmp_path, capfd):
    assert main(["find", *SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_defaults_on_the_command_line_are_those_of_the_library():
    given = vars(parser().parse_args(["find"]))
    for kind in (question.Question, commands.Search, trial.Trial):
        assert question.part(kind, given) == kind()
    assert not any(
        value is not None
        for name, value in vars(parser().parse_args(["evaluate", "x"])).items()
        if name in asdict(question.Question()) | asdict(trial.Trial())
    )


def test_every_choice_is_one_that_the_library_has():
    from circuits.options import METRICS as named

    assert {name.replace("-", "_") for name in named} == set(METRICS) - {"kl"}
    for method in commands.METHODS:
        assert parser().parse_args(["find", "--method", method]).method == method
    for ablation in trial.ABLATIONS:
        assert parser().parse_args(["find", "--ablation", ablation]).ablation == ablation


def test_the_commands_on_the_page_are_such():
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    lines = [line.removeprefix("$ circuits ") for line in page.splitlines() if line.startswith("$ circuits ")]
    assert len(lines) > 5
    for line in lines:
        assert parser().parse_args(shlex.split(line)).run
