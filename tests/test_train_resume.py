from __future__ import annotations

import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB, tiny
from test_activation_stream import Letters

from interventions.dictionaries import (
    CrossLayerJob,
    CrossLayerTranscoder,
    Job,
    SparseCoder,
    own_samples,
    recipes,
    train,
    train_jobs,
)
from interventions.dictionaries.log import log_to
from interventions.model import Model

STEPS = 60
RECIPES: dict[str, recipes.Recipe] = {
    "topk": recipes.TopK(4, start=12),
    "batchtopk": recipes.BatchTopK(4),
    "l1": recipes.L1(0.1),
    "gated": recipes.Gated(0.1),
    "jumprelu": recipes.JumpReLU(recipes.TargetL0(4)),
    "anneal": recipes.PAnneal(0.1),
    "matryoshka": recipes.Matryoshka(4, widths=(16, 32)),
}


class Stopped(Exception):
    pass


class Stopping:
    """A log that stops the training that it is of, once, at a step."""

    def __init__(self, step: int, error: type[BaseException] = Stopped):
        self.step, self.error, self.lines = step, error, []

    def __call__(self, line: Any) -> None:
        self.lines.append(line)
        if line["step"] == self.step:
            self.step = -1
            raise self.error


@pytest.fixture(autouse=True)
def short_reads(monkeypatch):
    monkeypatch.setattr("interventions.dictionaries.texts._READ", 48)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr("interventions.dictionaries.training._LOGGED", 10)


def _model() -> Model:
    return Model.load(tiny("gpt2", torch.float32).module, tokenizer=Letters())


def _tokens() -> torch.Tensor:
    return torch.randint(3, VOCAB, (64, 16), generator=torch.Generator().manual_seed(0))


def _jobs() -> dict[str, Any]:
    jobs: dict[str, Any] = {name: Job("resid.1", 64, recipe, lr=1e-3) for name, recipe in RECIPES.items()}
    jobs["another seed"] = Job("resid.1", 64, recipes.TopK(4), seed=1)
    jobs["wider"] = Job("resid.0", 128, recipes.TopK(4), dead_after=5)
    jobs["skip"] = Job("mlp.1", 64, recipes.TopK(4), reads="mlp_in.1", skip=True)
    pairs = [(f"mlp_in.{i}", f"mlp.{i}") for i in range(2)]
    jobs["across"] = CrossLayerJob(pairs, 64, recipes.TopK(4))
    return jobs


def _trained(tokens: Any = None, jobs: Any = None, **options: Any) -> dict[str, Any]:
    given = {"steps": STEPS, "batch_size": 32, "every": 20, **options}
    tokens = _tokens() if tokens is None else tokens
    return train_jobs(_model(), tokens, _jobs() if jobs is None else jobs, **given)


def _meta(given: Any) -> Any:
    if isinstance(given, CrossLayerTranscoder):
        return [layer.own.meta for layer in given.layers().values()]
    return given.meta


def _same(ours: Any, theirs: Any) -> bool:
    assert list(ours) == list(theirs)
    if isinstance(next(iter(ours.values())), torch.Tensor):
        return all(torch.equal(a, theirs[name]) for name, a in ours.items())
    return all(
        _same(a.state_dict(), theirs[name].state_dict()) and _meta(a) == _meta(theirs[name])
        for name, a in ours.items()
    )


def _one() -> dict[str, Job]:
    return {"one": Job("resid.1", 64, recipes.BatchTopK(4))}


@functools.cache
def _whole(pool: int | None) -> dict[str, Any]:
    return _trained(pool=pool)


@pytest.mark.parametrize("pool", [None, 128], ids=["pool that fits", "pool that refills"])
@pytest.mark.parametrize("stop", [30, 50])
def test_a_training_that_was_stopped_goes_on_to_the_same_dictionaries_bit_for_bit(
    tmp_path, often, pool, stop
):
    whole = _whole(pool)
    folder = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        _trained(pool=pool, checkpoint=folder, log=Stopping(stop))
    assert json.loads((folder / "training.json").read_text())["step"] == stop // 20 * 20
    seen = Stopping(0)
    assert _same(_trained(pool=pool, checkpoint=folder, log=seen), whole)
    assert seen.lines[0]["step"] == stop // 20 * 20 + 10
    assert not folder.exists()


def test_it_may_be_stopped_time_and_again_and_every_text_goes_on(tmp_path, often):
    (tmp_path / "corpus.txt").write_text("\n".join(f"line {i} of a text" for i in range(400)))
    batches = list(_tokens().split(4))
    strings = [f"string {i}" for i in range(300)]
    for tokens in (tmp_path / "corpus.txt", batches, strings, own_samples(_model(), rows=40, length=16)):
        options: dict[str, Any] = {"pool": 256, "context": 16, "jobs": _one(), "every": 7}
        whole = _trained(tokens, **options)
        for stop in (10, 20, 40, 50):
            with pytest.raises(Stopped):
                _trained(tokens, **options, checkpoint=tmp_path / "run", log=Stopping(stop))
        assert _same(_trained(tokens, **options, checkpoint=tmp_path / "run"), whole)


def test_an_iterator_goes_on_where_it_is_begun_anew(tmp_path, often):
    options: dict[str, Any] = {"pool": 128, "jobs": _one(), "steps": 25, "every": 10}
    whole = _trained(iter(_tokens().split(4)), **options)
    with pytest.raises(Stopped):
        _trained(iter(_tokens().split(4)), **options, checkpoint=tmp_path, log=Stopping(20))
    assert _same(_trained(iter(_tokens().split(4)), **options, checkpoint=tmp_path), whole)


def test_activations_held_in_half_precision_go_on_too(tmp_path, often):
    options: dict[str, Any] = {"dtype": torch.float16, "jobs": _one()}
    whole = _trained(**options)
    with pytest.raises(Stopped):
        _trained(**options, checkpoint=tmp_path, log=Stopping(30))
    assert _same(_trained(**options, checkpoint=tmp_path), whole)


@pytest.fixture
def listening():
    """A process started in the background ignores Ctrl-C; this one does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("while_reading", [True, False])
def test_ctrl_c_keeps_what_was_done(tmp_path, often, monkeypatch, listening, while_reading):
    options: dict[str, Any] = {"pool": 128, "jobs": _one(), "every": 1000, "checkpoint": tmp_path / "run"}
    whole = _trained(**{**options, "checkpoint": None})
    read, calls = Model.read, []
    if while_reading:  # what is under way is finished first

        def interrupted(self: Model, *args: Any) -> Any:
            calls.append(1)
            if len(calls) == 30:
                signal.raise_signal(signal.SIGINT)
            return read(self, *args)

        monkeypatch.setattr(Model, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _trained(**options, log=None if while_reading else Stopping(30, KeyboardInterrupt))
    monkeypatch.setattr(Model, "read", read)
    saved = json.loads((tmp_path / "run" / "training.json").read_text())["step"]
    assert 0 < saved < STEPS and (while_reading or saved == 30)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert _same(_trained(**options), whole)


def test_a_checkpoint_that_is_kept_gives_finished_dictionaries_again(tmp_path, monkeypatch):
    first = _trained(jobs=_one(), checkpoint=tmp_path, keep_checkpoint=True)
    monkeypatch.setattr("interventions.dictionaries.trainee.Trainee.advance", None)
    assert _same(_trained(jobs=_one(), checkpoint=tmp_path, keep_checkpoint=True), first)
    assert len(list(tmp_path.iterdir())) == 1 + 3  # the index, the learner, the pool, what it holds


def test_what_else_is_in_the_folder_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "resid.1-0123456789ab.safetensors").write_bytes(b"")
    _trained(jobs=_one(), checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "resid.1-0123456789ab.safetensors",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 70}, r"steps \(60, not 70\)"),
        ({"batch_size": 16, "decay": 0.5}, r"batch_size \(32, not 16\); decay"),
        ({"jobs": {"one": Job("resid.1", 64, recipes.BatchTopK(5))}}, "jobs one recipe"),
        ({"jobs": {"two": Job("resid.1", 64, recipes.BatchTopK(4))}}, "jobs one .* jobs two"),
        ({"tokens": _tokens() + 1}, "text sha256"),
        ({"tokens": ["a text"]}, "text tokens"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, often, changed, message):
    with pytest.raises(Stopped):
        _trained(jobs=_one(), checkpoint=tmp_path, log=Stopping(30))
    with pytest.raises(ValueError, match=f"differs in .*{message}"):
        _trained(**{"jobs": _one(), "checkpoint": tmp_path, **changed})


def test_a_checkpoint_of_another_model_is_refused(tmp_path, often):
    with pytest.raises(Stopped):
        _trained(jobs=_one(), checkpoint=tmp_path, log=Stopping(30))
    with pytest.raises(ValueError, match="differs in model"):
        train_jobs(
            tiny("llama", torch.float32), _tokens(), _one(), steps=STEPS, batch_size=32, checkpoint=tmp_path
        )


@pytest.mark.parametrize(
    "damaged", ["training.json", "training-20-0.safetensors", "training-held-1-0.safetensors"]
)
def test_a_damaged_checkpoint_is_refused(tmp_path, often, damaged):
    with pytest.raises(Stopped):
        _trained(jobs=_one(), checkpoint=tmp_path, log=Stopping(30))
    path: Path = tmp_path / damaged
    whole = path.read_bytes()
    middle = whole.index(b'"step": 20') + 8 if path.suffix == ".json" else len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:-7], b"", changed):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged.*remove .* to train anew"):
            _trained(jobs=_one(), checkpoint=tmp_path)


def test_what_a_process_left_that_was_ended_while_it_wrote_goes_too(tmp_path, often):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        _trained(jobs=_one(), checkpoint=folder, log=Stopping(30))
    for name in ("training-40-0.safetensors", "training.json"):
        (folder / f".{name}.0123abcd").write_bytes(b"half of i")
    _trained(jobs=_one(), checkpoint=folder)
    assert not folder.exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, often, monkeypatch):
    from interventions.dictionaries import checkpoint

    whole, write = _trained(jobs=_one()), checkpoint.write

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("training-40-pool"):
            raise OSError("No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match="No space left"):
        _trained(jobs=_one(), checkpoint=tmp_path)
    monkeypatch.setattr(checkpoint, "write", write)
    assert json.loads((tmp_path / "training.json").read_text())["step"] == 20
    assert _same(_trained(jobs=_one(), checkpoint=tmp_path), whole)


# the log


def test_a_log_has_a_line_for_each_dictionary_and_is_cut_back_when_a_training_goes_on(tmp_path, often):
    path, jobs = tmp_path / "logs" / "run.jsonl", {**_one(), "two": _jobs()["skip"]}
    _trained(jobs=jobs, log=path)
    whole = path.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [(line["step"], line["name"]) for line in lines[:3]] == [(10, "one"), (10, "two"), (20, "one")]
    assert len(lines) == 2 * STEPS // 10
    assert all(set(line) == {"step", "name", "fvu", "l0", "dead", "lr"} for line in lines)

    path.write_text("an earlier line\n")
    _trained(jobs=jobs, log=path, checkpoint=tmp_path / "run", keep_checkpoint=True)
    assert path.read_text() == "an earlier line\n" + whole


def test_lines_of_others_stay_in_a_log_that_is_cut_back(tmp_path):
    kept = ['{"step": 50, "name": "another"}', "no line of a training", '{"step": 20, "name": "one"}', "7"]
    undone = ['{"step": 30, "name": "one"}', '{"step": 50, "na']
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join([*kept[:2], undone[0], *kept[2:], undone[1]]))
    lines = log_to(path, 0, lambda line: line["name"] == "one" and line["step"] > 20)
    lines({"step": 30})
    assert path.read_text().splitlines() == [*kept, '{"step": 30}']


def test_lines_after_the_checkpoint_are_written_once(tmp_path, often, monkeypatch):
    from interventions.dictionaries import log

    path = tmp_path / "run.jsonl"
    path.write_text("an earlier line\n")
    call = log.Log.__call__

    def stopping(self: log.Log, line: Any) -> None:
        call(self, line)
        if line["step"] == 30:
            raise Stopped

    monkeypatch.setattr(log.Log, "__call__", stopping)
    with pytest.raises(Stopped):
        _trained(jobs=_one(), log=path, checkpoint=tmp_path / "run")
    monkeypatch.setattr(log.Log, "__call__", call)
    assert len(path.read_text().splitlines()) == 1 + 3
    _trained(jobs=_one(), log=path, checkpoint=tmp_path / "run")
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]]
    assert steps == [10, 20, 30, 40, 50, 60]


# jobs


def test_jobs_give_what_each_gives_alone():
    together = _trained()
    assert isinstance(together["across"], CrossLayerTranscoder)
    for name in ("topk", "another seed", "skip"):
        alone = _trained(jobs={name: _jobs()[name]})
        assert _same(alone, {name: together[name]})
    assert together["wider"].W_dec.shape == (128, 32)
    assert not _same({"a": together["topk"]}, {"a": together["another seed"]})


def test_train_is_one_job_for_each_site():
    options: dict[str, Any] = {"steps": 20, "batch_size": 32}
    found = train(
        _model(),
        _tokens(),
        ["resid.1", ("mlp_in.1", "mlp.1")],
        n_features=64,
        recipe=recipes.TopK(4),
        **options,
    )
    jobs = {
        "resid.1": Job("resid.1", 64, recipes.TopK(4)),
        "mlp.1": Job("mlp.1", 64, recipes.TopK(4), reads="mlp_in.1"),
    }
    assert _same(found, train_jobs(_model(), _tokens(), jobs, **options))


def test_dictionaries_are_trained_on_strings_and_files_without_special_tokens(tmp_path):
    strings = [f"string {i} of many" for i in range(200)]
    (tmp_path / "corpus.txt").write_text("\n".join(strings))
    for tokens in (strings, str(tmp_path / "corpus.txt")):
        found = train(
            _model(), tokens, ["resid.1"], n_features=64, recipe=recipes.TopK(8), steps=150, lr=3e-3,
            batch_size=64, context=16,
        )  # fmt: skip
        assert isinstance(found["resid.1"], SparseCoder) and found["resid.1"].meta["fvu"] < 0.5


def test_a_loss_that_is_not_finite_names_the_job():
    jobs = {"good": Job("resid.1", 64, recipes.TopK(4)), "bad": Job("resid.1", 64, recipes.L1(0.1), lr=1e20)}
    with pytest.raises(FloatingPointError, match=r"bad: .*resid\.1 diverged"):
        _trained(jobs=jobs, steps=200)


@pytest.mark.parametrize(
    ("jobs", "options", "message"),
    [
        ({}, {}, "at least one dictionary"),
        (None, {"every": 0}, "kept after some"),
        (None, {"steps": 0}, "one step"),
        (None, {"batch_size": 0}, "at least one position, not 0"),
        (None, {"pool": 0}, "at least one position"),
    ],
)
def test_settings_that_cannot_work_are_refused(jobs, options, message):
    with pytest.raises(ValueError, match=message):
        _trained(jobs=_one() if jobs is None else jobs, **options)
    for lr in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="learning rate"):
            Job("resid.1", 64, recipes.TopK(1), lr=lr)
    for pairs in ([], [("mlp_in.1", "mlp.1"), ("mlp_in.0", "mlp.0")], 2 * [("mlp_in.1", "mlp.1")]):
        with pytest.raises(ValueError, match="in the model's order"):
            CrossLayerJob(pairs, 64, recipes.TopK(1)).pairs(_model())
    with pytest.raises(ValueError, match="at least one feature"):
        Job("resid.1", 0, recipes.TopK(1))
