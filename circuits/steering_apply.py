"""The command that continues prompts, unsteered and steered."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from interventions.intervention import Intervention
from interventions.permanent import export_gguf
from interventions.recurrence import State
from interventions.splice import applied
from interventions.tensor_edits import Add

from .annotations import visible
from .files import writable
from .question import Say
from .record import interruptible, whole, write_json
from .steering_folder import Change, Found, at_random, loaded, part_of, steered
from .steering_sets import chat
from .terminal import plain
from .token_words import where


@dataclass(frozen=True)
class Application(Change):
    """A direction, how it is put to use, and how the model writes."""

    folder: str = ""
    model: str | None = None
    scale: float = 1.0
    max_new_tokens: int = 40
    sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    seed: int = 0
    chat: bool | None = None
    explain: bool = False
    random_control: int | None = None
    export_gguf: str | None = None
    device: str = "auto"
    dtype: str | None = None

    @property
    def writing(self) -> dict[str, Any]:
        """What the model is told of how to write."""
        if not self.sample:
            if self.temperature is not None or self.top_k is not None:
                raise ValueError("--temperature and --top-k are for tokens that are drawn: give --sample.")
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature or 1.0, "top_k": self.top_k or 0}


def apply(
    asked: Application, prompts: Sequence[str], *, out: str | None, quiet: bool, command: str, say: Say
) -> None:
    """Continues every prompt with and without a direction, on the terminal and to a file."""
    if not prompts and not asked.export_gguf:
        after = ", before --sites, which takes all words that follow" if asked.sites else ""
        raise ValueError(f"There is nothing to continue: give a prompt, in quotes{after}.")
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("A prompt is empty: there is nothing to go on from.")
    if not math.isfinite(asked.scale):
        raise ValueError(f"--scale is a finite number, not {asked.scale}.")
    if out is not None and Path(out).suffix != ".json":
        raise ValueError(f"--out writes texts as .json, not {out!r}.")
    writing = asked.writing
    where(asked.prompt_tokens, asked.generation_tokens)  # mistakes show before the model loads
    found = loaded(asked.folder, model=asked.model, device=asked.device, dtype=asked.dtype, say=say)
    part = part_of(found, asked.sites)
    intervention = steered(part, asked, asked.scale)
    say(f"Steering      {intervention!r}")
    if asked.export_gguf:
        _export(intervention, asked, found, part, say)
    arms: dict[str, Intervention | None] = {"unsteered": None, "steered": intervention}
    if asked.random_control is not None:
        arms[f"random {asked.random_control}"] = at_random(part, asked, asked.scale, asked.random_control)
    texts = []
    templated = found.options.get("chat") if asked.chat is None else asked.chat
    ask = chat(found.model) if templated else None
    with interruptible("What was written so far stands above."):
        for prompt in prompts:
            say(f"\n{visible(prompt)}")
            given = ask(prompt) if ask else prompt
            if asked.explain:
                _explain(found, intervention, given, say)
            written = {}
            for name, arm in arms.items():
                say(f"\n  {name}:")
                pieces = []
                for piece in _pieces(found, arm, given, asked, writing):
                    pieces.append(piece)
                    if not quiet:
                        _show(piece, first=len(pieces) == 1)
                say("")
                written[name] = "".join(pieces)
            texts.append({"prompt": prompt, **written})
    if out is not None:
        target = writable(Path(out).parent) / Path(out).name
        options = {k: v for k, v in asdict(asked).items() if k not in ("explain", "export_gguf")}
        write_json(target, {"command": command, "options": {**options, "folder": whole(asked.folder)},
                            "steering": repr(intervention), "texts": texts})  # fmt: skip
        say(f"\nWritten to {target}.")


def _pieces(
    found: Found, arm: Intervention | None, prompt: str, asked: Application, writing: Mapping[str, Any]
) -> Iterator[str]:
    """What the model writes, piece by piece; draws are the same in all arms."""
    torch.manual_seed(asked.seed)
    with applied(found.model, arm) if arm is not None else nullcontext():
        yield from found.model.stream(prompt, max_new_tokens=asked.max_new_tokens, **writing)


def _show(piece: str, *, first: bool) -> None:
    """Part of a line on a terminal, indented."""
    text, encoding = plain(piece).replace("\n", "\n  "), sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "replace").decode(encoding)
    print(f"  {text}" if first else text, end="", flush=True)


def _explain(found: Found, intervention: Intervention, prompt: str, say: Say) -> None:
    if not intervention.sites:
        return say("  The recurrent state is changed, between tokens.")
    explained = str(intervention.explain(found.model, prompt)).splitlines()[1:]
    for line in explained:
        say(f"  {line}")


def _export(intervention: Intervention, asked: Application, found: Found, part: Any, say: Say) -> None:
    if isinstance(part, State) or asked.keep_norm or asked.project_out:
        raise ValueError(
            "A control vector is a direction that is added: --export-gguf takes no other change."
        )
    target = Path(asked.export_gguf or "")
    if target.suffix != ".gguf":
        raise ValueError(f"--export-gguf writes a .gguf file, not {str(target)!r}.")
    writable(target.parent)
    if intervention.placed:
        raise ValueError(
            "A control vector is added at all tokens: leave out --prompt-tokens and --generation-tokens."
        )
    try:
        export_gguf(Add(part, scale=asked.scale), target, found.model)
    except ImportError as error:
        raise ValueError(str(error)) from None
    say(f"Written to {target}, for llama.cpp's --control-vector.")
