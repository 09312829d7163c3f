from __future__ import annotations

import builtins
import json
from collections import Counter
from typing import Any

import pytest
import torch
from families import VOCAB, WIDTH, module, tiny
from torch import nn

from interventions.dictionaries import texts as texts_module
from interventions.dictionaries.stream import Activations, activations
from interventions.dictionaries.texts import Batches, Rows, _continued, own_samples, text
from interventions.model import Model


class Letters:
    """A tokenizer with a token for each character."""

    bos_token_id, eos_token_id, all_special_ids = 1, 2, (0, 1, 2)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [3 + ord(letter) % (VOCAB - 3) for letter in text]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


def _model(name: str = "gpt2") -> Model:
    if name != "recurrent":
        return Model.load(tiny(name, torch.float32).module, tokenizer=Letters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model.load(Recurrent(), tokenizer=Letters())


def _rows(given: Any, *, context: int = 8, **options: Any) -> list[list[int]]:
    read = text(_model(), given, context=context, **options)
    return [row for tokens, _ in read.batches(0) for row in tokens.tolist()]


def _tokens(rows: int = 40, length: int = 16) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))


ids = Letters().encode


# what text can be given as


def test_strings_are_packed_into_rows_that_begin_with_bos_and_nothing_is_lost():
    strings = ["a first string", "", "two", "and a third one"]
    rows = _rows(strings)
    assert all(len(row) == 8 and row[0] == 1 for row in rows[:-1]) and len(rows[-1]) <= 8
    packed = [token for row in rows for token in row[1:]]
    assert packed == [*ids(strings[0]), 2, *ids(strings[2]), 2, *ids(strings[3]), 2]


def test_a_file_is_streamed_and_gives_the_rows_of_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr("interventions.dictionaries.prose._PIECE", 64)
    whole = "\n".join(f"line {i} of naïve 文字 text" for i in range(40)) + "x" * 300 + "é" * 200
    (tmp_path / "corpus.txt").write_text(whole, encoding="utf-8-sig")
    rows = _rows(str(tmp_path / "corpus.txt"))
    assert [token for row in rows for token in row[1:]] == ids(whole)
    assert _rows(tmp_path / "corpus.txt") == rows
    (tmp_path / "windows.txt").write_bytes(b"a\r\nb\r\n")
    assert _rows(tmp_path / "windows.txt") == [[1, *ids("a\nb\n")]]


def test_a_dataset_is_streamed_from_its_text_column(tmp_path):
    pytest.importorskip("datasets")
    lines = [{"id": str(i), "text": f"string {i}", "title": "none"} for i in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert _rows(str(tmp_path)) == _rows([line["text"] for line in lines])
    assert _rows(str(tmp_path), column="title") == _rows(["none"] * 5)
    with pytest.raises(ValueError, match=r"strings in id, text, title: .* not 'body'"):
        _rows(str(tmp_path), column="body")


def test_a_dataset_without_the_library_says_what_to_install(monkeypatch):
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install breadboard-circuits\[data\]"):
        _rows("owner/corpus")


@pytest.mark.parametrize("name", ["gpt2", "mamba", "rwkv", "recurrent"])
def test_a_model_writes_its_own_samples(name):
    model = _model(name)
    before = torch.random.get_rng_state()
    samples = own_samples(model, rows=6, length=12)
    assert samples.shape == (6, 12) and (samples[:, 0] == 1).all()
    assert torch.equal(samples, own_samples(model, rows=6, length=12))
    assert not torch.equal(samples, own_samples(model, rows=6, length=12, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    greedy = own_samples(model, rows=2, length=12, temperature=1e-4)
    assert torch.equal(greedy[:, 1:], model.logits(greedy)[:, :-1].argmax(-1))


def test_samples_do_not_depend_on_those_before_them():
    model, begin, drawn = tiny("recurrent_gemma", torch.float32), torch.ones(2, 1, dtype=torch.long), []
    with torch.random.fork_rng([]):
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            drawn.append(_continued(model, begin, 40, 1.0, True))
    assert torch.equal(drawn[0], drawn[2])


def test_a_model_that_cannot_generate_is_sampled_by_its_logits(monkeypatch):
    model = _model("gpt2")

    def generate(*_args: Any, **_options: Any) -> None:
        raise ValueError("no cache for this one")

    monkeypatch.setattr(model.module, "generate", generate)
    samples = own_samples(model, rows=6, length=12)
    assert samples.shape == (6, 12) and torch.equal(samples, own_samples(model, rows=6, length=12))


def test_a_long_text_in_the_place_of_a_path_is_no_path():
    with pytest.raises(FileNotFoundError, match="passed in a list") as error:
        text(_model(), "A long text. " * 1000)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("name", ["gpt2", "recurrent"])
def test_samples_have_the_odds_of_the_model(name):
    model = _model(name)
    words = own_samples(model, rows=4000, length=2)[:, 1]
    found = torch.bincount(words, minlength=VOCAB) / len(words)
    expected = model.logits(torch.ones(1, 1, dtype=torch.long))[0, -1].softmax(-1)
    assert (found - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    ("name", "alone"), [("gpt2", True), ("mamba", True), ("llama", True), ("rwkv", False)]
)
def test_a_cache_is_used_where_it_leaves_the_odds_as_they_are(name, alone):
    assert texts_module._generates(_model(name)) == alone


def test_samples_go_on_from_what_they_are_given():
    begin = torch.tensor([[5, 9, 11]])
    samples = own_samples(_model(), rows=4, length=10, begin=begin)
    assert (samples[:, :3] == begin).all()


def test_text_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        _rows(tmp_path / "latin")
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.txt"):
        _rows(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="no room"):
        _rows(["a"], context=1)
    with pytest.raises(TypeError, match="a list of strings"):
        _rows(iter(["a", "b"]))
    with pytest.raises(ValueError, match="above 0"):
        own_samples(_model(), rows=1, length=2, temperature=0)


def _sources(folder: Any) -> dict[str, Any]:
    path = folder / "corpus.txt"
    path.write_text("\n".join(f"line {i}" * (i % 5) for i in range(150)))
    return {
        "rows": _tokens(130),
        "batches": list(_tokens(60).split(7)),
        "strings": [f"string {i}" * (i % 5) for i in range(90)],
        "file": path,
    }


@pytest.mark.parametrize("kind", ["rows", "batches", "strings", "file"])
def test_text_goes_on_from_every_position_of_it(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("interventions.dictionaries.prose._READ", 50)
    monkeypatch.setattr("interventions.dictionaries.prose._PIECE", 100)
    monkeypatch.setattr(texts_module, "_READ", 200)

    def opened() -> Any:
        return text(_model(), _sources(tmp_path)[kind], context=16)

    whole = list(opened().batches(1))
    assert len(whole) > 5
    for i, (_, position) in enumerate(whole):
        position = json.loads(json.dumps(position))
        after = [tokens for tokens, _ in opened().batches(1, position)]
        assert all(torch.equal(a, b) for a, (b, _) in zip(after, whole[i + 1 :], strict=True))
    assert opened().identity() == opened().identity()
    json.dumps(opened().identity())


# the stream


def _positions(batches: Any, site: Any) -> Counter[tuple[float, ...]]:
    return Counter(tuple(x) for batch in batches for x in batch[site].tolist())


@pytest.mark.parametrize("name", ["gpt2", "mamba", "recurrent"])
@pytest.mark.parametrize("buffer", [100, 10_000])
def test_a_stream_shows_every_activation_once_shuffled(name, buffer):
    model, tokens = _model(name), _tokens()
    sites = [model.site(site) for site in list(model.sites)[:: len(model.sites) - 1]]
    read = model.read(tokens, sites)
    batches = list(activations(model, sites, Batches(list(tokens.split(1))), batch_size=50, buffer=buffer))
    assert [len(batch[sites[0]]) for batch in batches[:-1]] == [50] * (len(batches) - 1)
    for site in sites:
        shown = torch.cat([batch[site] for batch in batches])
        expected = read[site].flatten(0, 1)
        assert not torch.equal(shown, expected)
        torch.testing.assert_close(shown.sum(-1).sort().values, expected.sum(-1).sort().values)
    pairs = torch.cat([torch.cat([batch[site] for site in sites], -1) for batch in batches])
    both = torch.cat([read[site].flatten(0, 1) for site in sites], -1)
    torch.testing.assert_close(pairs.sum(-1).sort().values, both.sum(-1).sort().values)


def test_special_tokens_are_left_out_of_texts_and_no_tokens_are_out_of_tokens():
    model = _model()
    strings = ["one", "two", "three"]
    shown = torch.cat([b[model.site("embed")] for b in activations(model, ["embed"], strings)])
    assert len(shown) == sum(map(len, strings))
    tokens = torch.tensor([[1, 5, 6, 2]])

    def count(**options: Any) -> int:
        return sum(len(b[model.site("embed")]) for b in activations(model, ["embed"], tokens, **options))

    assert count() == 4 and count(ignore=[1, 6]) == 2


def test_what_is_held_has_the_dtype_asked_for_and_stays_within_bounds():
    model = _model()
    stream = activations(
        model, ["resid.0"], list(_tokens(400).split(4)), batch_size=50, buffer=300, dtype=torch.float16
    )
    for batch in stream:
        assert batch[model.site("resid.0")].dtype == torch.float16
        assert stream.positions <= 300 + 4 * 16


def test_epochs_are_counted_and_may_be_without_end():
    model = _model()
    twice = list(activations(model, ["embed"], _tokens(), batch_size=64, epochs=2))
    assert len(twice) == 20
    thrice = activations(model, ["embed"], _tokens(), batch_size=10_000, epochs=3)
    assert len(list(thrice)) == 3
    stream = activations(model, ["embed"], _tokens(), batch_size=64, buffer=128, epochs=None)
    assert all(len(next(stream)[model.site("embed")]) == 64 for _ in range(50))


@pytest.mark.parametrize("buffer", [120, 10_000])
@pytest.mark.parametrize("kind", ["rows", "batches", "strings", "file"])
def test_a_stream_goes_on_where_its_state_was_taken(kind, buffer, tmp_path):
    model = _model()
    source = _sources(tmp_path)[kind]

    def stream() -> Activations:
        options: dict[str, Any] = {"batch_size": 37, "buffer": buffer, "context": 16, "epochs": 3}
        return activations(model, ["resid.1", "embed"], source, **options)

    whole = [batch[model.site("resid.1")] for batch in stream()]
    for stop in (0, 1, 5, len(whole) // 2, len(whole) - 1, len(whole)):
        first, second = stream(), stream()
        for _ in range(stop):
            next(first)
        state = first.state()
        for _ in range(3):  # a state is not changed by what comes after it
            next(first, None)
        second.restore(state)
        rest = [batch[model.site("resid.1")] for batch in second]
        assert len(rest) == len(whole) - stop
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[stop:], strict=True))


def test_a_state_of_other_sites_is_refused():
    model = _model()
    stream = activations(model, ["embed"], _tokens())
    next(stream)
    with pytest.raises(ValueError, match=r"stream at \['embed'\], not at \['resid.0'\]"):
        activations(model, ["resid.0"], _tokens()).restore(stream.state())
    with pytest.raises(ValueError, match=r"held as torch\.float32, not as torch\.float16"):
        activations(model, ["embed"], _tokens(), dtype=torch.float16).restore(stream.state())


def test_a_stream_without_text_or_of_a_bare_site_is_refused():
    model: Any = Model.load(module("gpt2", torch.float32), tokenizer=Letters())
    with pytest.raises(ValueError, match="no tokens to read"):
        next(activations(model, ["embed"], []))
    with pytest.raises(ValueError, match="no tokens to read"):
        next(activations(model, ["embed"], _tokens(), ignore=range(VOCAB)))
    with pytest.raises(TypeError, match=r"\['embed'\]"):
        activations(model, "embed", _tokens())
    with pytest.raises(ValueError, match="row pos"):
        Rows(torch.zeros(3))
    with pytest.raises(ValueError, match=r"not finite as torch\.float16"):
        model.module.get_input_embeddings().weight.mul_(1e6)
        next(activations(model, ["embed"], _tokens(), dtype=torch.float16))
