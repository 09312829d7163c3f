"""Task files: what is written is read again, and what is wrong is said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks import METRICS, TASKS, LogitDifference, Pair, Probability, Task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.jsonl"


@pytest.mark.parametrize("name", TASKS)
def test_a_saved_task_is_loaded_as_it_was(name, path):
    task = TASKS[name](n=7)
    task.save(path)
    assert Task.load(path) == task


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics_are_saved_by_name(metric, path):
    Task("t", [Pair("é\u2028", None, (" x", 3))], metric).save(path)
    assert Task.load(path).metric == metric
    assert Task.load(path, metric=Probability()).metric == Probability()


def test_a_metric_without_a_name_has_to_be_given_again(path):
    def surprise(logits, batch):
        return -logits[:, -1].log_softmax(-1).amax(-1)

    Task("t", [Pair("a", None, (" x",))], surprise).save(path)
    with pytest.raises(ValueError, match="pass `metric=`"):
        Task.load(path)
    assert Task.load(path, metric=surprise).metric is surprise


def test_saving_replaces_the_file_whole_or_not_at_all(path):
    task = Task("t", [Pair("a", "b", (" x",))])
    task.save(path)
    before = path.read_text()
    unwritable = Task("t", [Pair("a", "b", (" x",)), Pair("a", "b", (" x",), case=object())])  # type: ignore
    with pytest.raises(TypeError):
        unwritable.save(path)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_feature_circuits_files_are_read(path):
    record = {
        "clean_prefix": "The boy",
        "patch_prefix": "The boys",
        "clean_answer": " is",
        "patch_answer": " are",
        "case": "singular",
    }
    path.write_text(json.dumps(record) + "\n\n" + json.dumps({**record, "case": "again"}) + "\n")
    task = Task.load(path)
    assert task.pairs[0] == Pair("The boy", "The boys", (" is",), (" are",), "singular")
    assert [pair.case for pair in task.pairs] == ["singular", "again"]
    assert (task.name, task.metric) == ("task", LogitDifference())


@pytest.mark.parametrize("indent", [None, 2])
def test_auto_circuit_files_are_read(path, indent):
    prompt = {"clean": "A", "corrupt": "B", "answers": [" x", " y"], "wrong_answers": [" z"]}
    ids = {"clean": [1, 2], "corrupt": [3, 4], "answers": [5], "wrong_answers": [6]}
    path.write_text(json.dumps({"seq_labels": ["s"], "prompts": [prompt, ids]}, indent=indent))
    assert Task.load(path).pairs == (
        Pair("A", "B", (" x", " y"), (" z",)),
        Pair((1, 2), (3, 4), (5,), (6,)),
    )


HEADER = '{"task": "t", "metric": "kl"}\n'
PAIR = '{"clean": "a", "patch": null, "answers": [" x"]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{nonsense}\n", r"line 1, column 2: not JSON"),
        (HEADER + PAIR + '{"clean": \n', "line 3, column .*: not JSON"),
        ('{\n "prompts": [\n  {,}\n ]\n}', "line 3, column .*: not JSON"),
        ("[1, 2]", "line 1: a JSON object is expected, not list"),
        (HEADER, "line 1: no pairs follow"),
        (HEADER + PAIR + '{"clean": "a"}\n', "line 3: no 'patch' or 'answers'; a pair has clean, patch"),
        (HEADER + '{"clean": "a", "patch": null, "answers": " x"}', "line 2: `answers` is a tuple"),
        (HEADER + '{"clean": "a", "patch": [1], "answers": [" x"]}', "line 2: Clean and patch"),
        ('{"clean_prefix": "a", "clean_answer": " x"}', "line 1: no 'patch_prefix' or 'patch_answer'"),
        ('{"prompts": [{"clean": "a"}]}', "prompt 0: no 'corrupt'"),
        ('{"prompts": []}', "no pairs follow"),
        ('{"prompts": ["a"]}', "prompt 0: A pair is a JSON object, not str"),
        ('{"task": "t", "metric": "loss"}\n' + PAIR, "metric 'loss', which is none of logit_difference"),
    ],
)
def test_a_broken_file_is_refused_with_the_line_at_fault(text, message, path):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Task.load(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"no task file .*task\.jsonl"):
        Task.load(path)
