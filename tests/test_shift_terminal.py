"""Judging in a real pseudo-terminal: keys are typed into it, and what it shows is read back."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from shift_texts import dossier

from circuits.shift.dossier import Dossier
from circuits.shift.judges import judged
from circuits.shift.keys import END, _pressed, keys
from circuits.shift.screen import Screen, _wide, page
from circuits.shift.terminal import AtTerminal, in_terminal
from circuits.shift.verdicts import Verdicts

pytestmark = [
    pytest.mark.filterwarnings("ignore:On these texts"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
pty = pytest.importorskip("pty")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_READY = "? help"


@pytest.fixture(scope="module")
def seen() -> Dossier:
    return dossier(5)


@pytest.fixture
def file(seen, tmp_path) -> Path:
    return seen.save(tmp_path / "evidence.json")


def _judge(evidence: Path, verdicts: Path, columns: int) -> NoReturn:
    """What runs at the other side of the terminal."""
    try:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", encoding="utf-8")
        sys.__stdout__ = sys.stdout
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("DONE", repr(in_terminal(Dossier.load(evidence), verdicts, by="ann")), flush=True)
    except KeyboardInterrupt:
        print("INTERRUPTED", flush=True)
    finally:
        os._exit(0)


class Sitting:
    """Somebody at a terminal of so many columns."""

    def __init__(self, evidence: Path, verdicts: Path, *, columns: int = 80, **environment: str):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm-256color", **environment})
            _judge(evidence, verdicts, columns)
        self.raw = ""
        self.screen = self.until(_READY)

    def until(self, text: str) -> str:
        """What is shown until a text is; all of it."""
        found, end = b"", time.monotonic() + 120
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    found += os.read(self.fd, 65536)
                except OSError:  # the other side is closed
                    break
            if text in _CODES.sub("", found.decode("utf-8", "ignore")):
                break
        self.raw = found.decode("utf-8")
        return _CODES.sub("", self.raw).replace("\r\n", "\n")

    def press(self, key: str, until: str = _READY) -> str:
        os.write(self.fd, key.encode())
        self.screen = self.until(until)
        return self.screen

    def settings(self) -> list:
        return termios.tcgetattr(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def test_features_are_judged_taken_back_skipped_and_gone_on_with(seen, file, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    sitting = Sitting(file, path)
    assert f"{seen[0].name}   1 of 5" in sitting.screen
    assert "0 of 5 judged, 0 spurious" in sitting.screen
    screen = sitting.press("y")
    assert f"{seen[0].name} is spurious. u takes it back." in screen
    assert f"{seen[1].name}   2 of 5" in screen
    assert len(path.read_text().splitlines()) == 2  # on the disk before the next key
    sitting.press("n")
    screen = sitting.press("u")
    assert "It was kept, which is taken back." in screen
    assert f"{seen[1].name}   2 of 5" in screen
    assert f"{seen[2].name}   3 of 5" in sitting.press("s")
    assert "1 skipped" in sitting.screen
    screen = sitting.press("u")
    assert f"{seen[1].name}   2 of 5" in screen
    assert "The skip is taken back." in screen
    sitting.press("s")
    end = sitting.press("q", "DONE")
    assert "1 of 5 judged: 1 spurious, 0 kept." in end
    assert "The 4 left are asked about the next time." in end
    sitting.close()

    sitting = Sitting(file, path)  # the next day
    assert f"{seen[1].name}   2 of 5" in sitting.screen
    assert f"{seen[0].name}   1 of 5" in sitting.press("u")  # of the day before
    assert "There is nothing to take back." in sitting.press("u")
    for i in range(4):
        assert f"{i + 1} of 5 judged" in sitting.press("n")
    assert "5 of 5 judged: 1 spurious, 4 kept." in sitting.press("y", "DONE")
    sitting.close()
    found = Verdicts.load(path)
    assert [verdict.at for verdict in found.given] == [(one.site, one.feature) for one in seen]
    assert found.features == {seen[4].site: [seen[4].feature]}
    assert found.given[0].by == "ann"


def test_interrupting_keeps_everything_and_puts_the_terminal_back(seen, file, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    sitting = Sitting(file, path)
    assert not sitting.settings()[3] & termios.ECHO
    sitting.press("y")
    end = sitting.press("\x03", "INTERRUPTED")
    assert "1 of 5 judged: 1 spurious" in end
    assert Verdicts.load(path).features == {seen[0].site: [seen[0].feature]}
    sitting.close()


def test_more_contexts_help_and_other_keys(seen, file, tmp_path):
    sitting = Sitting(file, tmp_path / "verdicts.jsonl")
    assert "more, by c" in sitting.screen
    fewer = sitting.screen
    assert len(sitting.press("c").splitlines()) > len(fewer.splitlines())
    sitting.press("c")
    assert "There are no more contexts." in sitting.press("c")
    assert "the classifier should not use this feature" in sitting.press("?", "by the correlation")
    sitting.until(_READY)
    assert "'x' is no key here." in sitting.press("x")
    assert "That is no key here." in sitting.press("\x1b[A")  # an arrow
    assert "'é' is no key here." in sitting.press("é")
    assert "0 of 5 judged: " in sitting.press("\x04", "DONE")
    sitting.close()


@pytest.mark.parametrize("columns", [80, 40])
def test_lines_fit_the_terminal(seen, file, tmp_path, columns):
    sitting = Sitting(file, tmp_path / "verdicts.jsonl", columns=columns)
    assert "\x1b[1;7m" in sitting.raw  # the peak is marked
    assert max(map(len, sitting.screen.splitlines())) < columns
    assert len(sitting.screen.splitlines()) <= 30
    sitting.press("q", "DONE")
    sitting.close()


def test_without_colours_peaks_are_in_brackets(seen, file, tmp_path):
    sitting = Sitting(file, tmp_path / "verdicts.jsonl", NO_COLOR="1")
    assert "\x1b[1" not in sitting.raw
    context = seen[0].contexts[0]
    assert f"[{context.tokens[context.at].strip()}]" in sitting.screen
    sitting.press("q", "DONE")
    sitting.close()
    sitting = Sitting(file, tmp_path / "verdicts.jsonl", TERM="dumb")
    assert "\x1b" not in sitting.raw
    sitting.press("q", "DONE")
    sitting.close()


@pytest.fixture
def piped(monkeypatch, capsys):
    def judge(evidence: Dossier, path: Path, lines: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        in_terminal(evidence, path)
        return capsys.readouterr().out

    return judge


def test_lines_from_a_pipe_are_keys(seen, tmp_path, piped):
    path = tmp_path / "verdicts.jsonl"
    said = piped(seen, path, "y\n\nno\nspurious?\n")  # the last is the key s
    assert "2 of 5 judged: 1 spurious, 1 kept." in said
    assert "\x1b" not in said
    assert len(Verdicts.load(path)) == 2


def test_where_nobody_can_judge_that_is_told(seen, tmp_path, piped):
    with pytest.raises(ValueError, match="There is nobody to judge"):
        piped(seen, tmp_path / "verdicts.jsonl", "")


def test_what_is_judged_already_is_not_asked(seen, tmp_path, piped):
    path = tmp_path / "verdicts.jsonl"
    piped(seen, path, "y\n" * 5)
    assert piped(seen, path, "").startswith("5 of 5 judged: 5 spurious")


def test_whoever_sits_at_the_terminal_is_a_judge_like_others(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\nn\nu\ny\ns\n"))
    found = judged(seen[:4], AtTerminal(by="bob"), tmp_path / "verdicts.jsonl")
    assert [(verdict.feature, verdict.by) for verdict in found.given] == [
        (one.feature, "bob") for one in seen[:2]
    ]


def test_text_of_models_is_made_harmless_on_the_screen(seen):
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\r\n"
    context = replace(seen[0].contexts[0], tokens=tuple(evil for _ in seen[0].contexts[0].tokens))
    one = replace(seen[0], contexts=(context,), elsewhere=(context,), raised=((evil, 1.0),))
    plain = "".join(page(one, Screen(), contexts=9))
    assert not set("\x1b\x07\r\n\u202e") & set(plain)
    coloured = "".join(page(one, Screen(colours=True), contexts=9))
    assert not set("\x1b\x07\r\n\u202e") & set(_CODES.sub("", coloured))


@pytest.mark.parametrize("width", [20, 39, 79])
def test_wide_characters_and_long_words_are_broken_to_fit(seen, width):
    context = replace(
        seen[0].contexts[0], tokens=("漢字" * 40, " " + "x" * 150, "é" * 9), values=(1.0, 2.0, 0.0), at=1
    )
    for line in page(replace(seen[0], contexts=(context,)), Screen(width=width), contexts=3):
        assert _wide(line) <= width


@pytest.mark.parametrize("width", [20, 39, 79])
def test_a_long_token_does_not_hide_that_there_are_tokens(seen, width):
    one = replace(seen[0], raised=(("-" * 90, 2.0), (" she", 1.0)), lowered=(("漢" * 30, -1.0),))
    lines = page(one, Screen(width=width), contexts=1)
    for name, start in (("raises", "----"), ("lowers", "漢漢")):
        (line,) = (line for line in lines if line.startswith(name))
        assert line.split()[1].startswith(start) and "…" in line and _wide(line) <= width
    assert ("she" in "".join(lines)) is (width == 79)


def test_a_feature_that_is_active_nowhere_says_so(seen):
    assert page(replace(seen[0], contexts=()), Screen(), contexts=3)[-1].startswith("Nowhere active")


def test_keys_from_a_file_are_first_letters_of_its_lines():
    with keys(io.StringIO("Yes\n\n  n \n")) as read:
        assert [read(), read(), read()] == ["y", "n", END]


def test_input_that_ends_in_an_escape_is_no_endless_key():
    read, write = os.pipe()
    os.write(write, b"\x1b")
    os.close(write)
    assert [_pressed(read), _pressed(read)] == ["\x1b", END]
    os.close(read)
