from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from circuits import embedded
from circuits.feature_page import page, save_page
from circuits.feature_table import columns, feature_table
from circuits.portrait import activity, densities, portraits, writes_to_stream
from circuits.text import rows
from interventions.dictionaries import SparseCoder
from interventions.dictionaries.measures.profiles import Context

EVIL = "</p><script>alert(1)</script>\"'\x1b[31m\u202e&amp;"


@pytest.fixture(scope="module")
def model():
    return embedded.model()


@pytest.fixture(scope="module")
def coder():
    return embedded.dictionaries()["resid.1"]


@pytest.fixture(scope="module")
def text(model):
    return rows(model, "own", context=24, n=64, progress=False)


@pytest.fixture(scope="module")
def portrait(model, coder, text):
    found = activity(model, coder, [131], text, site="resid.1")
    return portraits(model, coder, found, site="resid.1")[0]


class Seen(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == "rect" or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# --- what there is to see -----------------------------------------------------------------------------------


def test_contexts_are_the_places_with_the_largest_values(model, coder, text, portrait):
    acts = coder.encode(model.read(text, ["resid.1"])[model.site("resid.1")])[..., 131]
    acts[text == model.tokenizer.bos_token_id] = 0
    assert portrait.largest == pytest.approx(acts.max().item())
    assert portrait.strongest[0].value == pytest.approx(portrait.largest)
    assert portrait.density == pytest.approx((acts > 0).sum().item() / (text != 2).sum().item(), rel=0.2)
    values = [context.value for context in portrait.strongest]
    assert values == sorted(values, reverse=True)
    for context in (*portrait.strongest, *portrait.drawn):
        assert context.value == pytest.approx(acts[context.row, context.pos].item())
        assert len(context.tokens) == len(context.values)


def test_no_two_contexts_have_the_same_text_before_them(text, portrait):
    before = [tuple(text[c.row, : c.pos + 1].tolist()) for c in portrait.strongest]
    assert len(set(before)) == len(before)


def test_the_pieces_of_a_context_are_its_text(model, text, portrait):
    context = portrait.drawn[0]
    first = context.pos - context.at
    whole = model.tokenizer.decode(text[context.row, first : first + len(context.tokens)])
    assert "".join(context.tokens).split() == whole.split()


def test_densities_are_shares_of_positions(model, coder, text, portrait):
    density = densities(model, coder, text, site="resid.1")
    assert density.shape == (256,)
    assert density[131].item() == pytest.approx(portrait.density)


def test_logits_are_moved_as_the_unembedding_moves_them(model, coder, portrait):
    assert portrait.raised is not None and portrait.lowered is not None
    rising = [value for _, value in portrait.raised]
    assert rising == sorted(rising, reverse=True) and rising[0] > 0
    assert portrait.lowered[0][1] < 0
    # the feature is of plural nouns: a verb in the singular becomes less likely
    assert {" is", " was", " has", " does"} & {token for token, _ in portrait.lowered}


def test_sites_that_modules_read_have_no_effect_on_logits_of_their_own(model, text):
    assert writes_to_stream(model, "resid.1") and not writes_to_stream(model, "mlp_in.1")
    coder = SparseCoder.random(64, 128, site="mlp_in.1")
    found = activity(model, coder, [3], text, site="mlp_in.1")
    assert portraits(model, coder, found, site="mlp_in.1")[0].raised is None


def test_nearest_features_are_those_with_the_largest_cosines(coder, portrait):
    rows = torch.nn.functional.normalize(coder.W_dec.float(), dim=-1)
    cosine = rows @ rows[131]
    cosine[131] = -1
    assert portrait.nearest[0].feature == int(cosine.argmax())
    assert portrait.nearest[0].decoder == pytest.approx(cosine.max().item())


def test_a_feature_that_is_not_there_is_named(model, coder, text):
    with pytest.raises(LookupError, match=r"No feature 256 at resid\.1: there are 256, 0 to 255"):
        activity(model, coder, [3, 256], text, site="resid.1")


def test_a_feature_that_is_never_active_has_an_empty_portrait(model, text):
    coder = SparseCoder.random(64, 128, site="resid.1")
    coder.b_enc.data[5] = -1e6
    found = activity(model, coder, [5], text, site="resid.1")
    portrait = portraits(model, coder, found, site="resid.1")[0]
    assert (portrait.density, portrait.largest, portrait.strongest) == (0, 0, ())
    assert "Nowhere in this text." in page([portrait], title="silent")
    assert any("0.00% of" in line for line in feature_table(portrait))


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(portrait):
    html = page([portrait], title="Features", about="of a model")
    seen = Seen(html)
    assert not seen.open
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", html)
    policy = next(attrs for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html


def test_tokens_are_shaded_by_their_share_of_the_largest_value(portrait):
    marks = [attrs for tag, attrs in Seen(page([portrait], title="x")).tags if tag == "s"]
    shown = [value for c in (*portrait.strongest, *portrait.drawn) for value in c.values if value]
    assert len(marks) == len(shown)
    for mark, value in zip(marks, shown, strict=True):
        assert float(mark["title"]) == pytest.approx(value, rel=0.01)
        assert mark["style"] == f"--a:{value / portrait.largest:.2f}"
    assert sum("peak" in mark.get("class", "") for mark in marks) == len(portrait.strongest + portrait.drawn)


def test_nothing_from_a_model_or_a_file_becomes_markup(portrait):
    context = Context(0, 1, 1, (EVIL, EVIL), (0.0, 1.0))
    evil = replace(portrait, site=EVIL, strongest=(context,), raised=((EVIL, 1.0),), lowered=((EVIL, -1.0),))
    html = page([evil, portrait], title=EVIL, about=EVIL)
    seen = Seen(html)
    assert not seen.open and "script" not in {tag for tag, _ in seen.tags}
    assert "<script" not in html and "\x1b" not in html and "\u202e" not in html
    assert seen.text.count("<script>alert(1)</script>") >= 6  # it is there, as text
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert all(re.fullmatch(r"[\w-]+", name) for name in ids)


def test_a_page_of_several_features_leads_to_each(portrait):
    other = replace(portrait, feature=portrait.nearest[0].feature)
    seen = Seen(page([portrait, other], title="two"))
    ids = {attrs["id"] for _, attrs in seen.tags if "id" in attrs}
    links = [attrs["href"].removeprefix("#") for tag, attrs in seen.tags if tag == "a"]
    assert set(links) == ids and len(ids) == 2
    assert len(links) > 2  # also from the table of nearest features


def test_negative_values_are_marked_as_such(portrait):
    context = Context(0, 0, 0, ("no", "yes"), (-2.0, 1.0))
    html = page([replace(portrait, strongest=(context,), drawn=(), largest=2.0)], title="signed")
    assert '<s class="less peak" style="--a:1.00" title="-2">no</s>' in html
    assert '<s style="--a:0.50" title="1">yes</s>' in html


def test_a_page_is_written_whole(portrait, tmp_path):
    path = save_page(tmp_path / "page.html", [portrait], title="x")
    assert path.read_text() == page([portrait], title="x")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


# --- the terminal -------------------------------------------------------------------------------------------


def test_lines_fit_the_terminal_and_mark_the_peak(portrait):
    lines = list(feature_table(portrait, width=90))
    assert all(len(line) <= 90 for line in lines)
    shown = [line for line in lines if "[" in line]
    assert len(shown) == len(portrait.strongest) + len(portrait.drawn)
    peak = portrait.strongest[0].tokens[portrait.strongest[0].at].strip()
    assert f"[{peak}]" in shown[0]
    assert not any("\x1b" in line for line in lines)


def test_colours_stand_where_a_terminal_shows_them_and_nothing_else_controls_it(portrait):
    context = Context(0, 1, 1, ("a\x1b[2J", f"b{EVIL}"), (0.0, 1.0))
    lines = "\n".join(feature_table(replace(portrait, strongest=(context,)), colour=True))
    assert "\x1b[38;5;16;48;5;" in lines
    assert set(re.findall(r"\x1b\[[\d;]*m", lines)) and "\x1b[2J" not in lines and "\x1b[31m" not in lines
    assert "\u202e" not in lines


def test_columns_are_aligned():
    assert list(columns([["a", "b"], ["long", "7.5"]])) == ["a       b", "long  7.5"]


def test_a_feature_that_writes_at_several_layers_moves_logits_by_all_of_them(model, text):
    from interventions.dictionaries.cross_layer import CrossLayer

    own = SparseCoder.random(64, 96, 64, site="mlp.0", reads="mlp_in.0")
    found = activity(model, own, [3], text, site="mlp.0")
    alone, more, nothing = (
        portraits(model, CrossLayer(own, {"mlp.2": scale * own.W_dec}), found, site="mlp.0")[0]
        for scale in (0.0, 1.0, -1.0)
    )
    assert alone.raised is not None and more.raised is not None and nothing.raised is not None
    assert more.raised[0][1] == pytest.approx(2 * alone.raised[0][1], rel=1e-3)
    assert nothing.raised[0][1] == pytest.approx(0, abs=1e-5)
