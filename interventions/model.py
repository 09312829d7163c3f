"""A frozen language model whose sites have names, and the one engine that visits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .fingerprint import fingerprint
from .loading import load
from .middles import middles
from .observation import arguments, sample
from .outputs import ended, logits_of, observed, text_classes
from .passage import Follower, Passage, Prompt
from .pooling import Pool, mean
from .sites import Layout, Side, Site
from .skipping import Record, passing, repeated, returning
from .structure import discover, heads, last_call, missing_layout, name_sites, place
from .tensors import hidden, map_tensors
from .visits import Visit, visited

if TYPE_CHECKING:
    from .probed import Classifier, ProbedModel

# What a model's own code raises where it cannot do with less than the whole of its blocks.
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)


class Model:
    """A frozen causal language model whose sites have names. `Model.load` makes one.

    `classes` are what its logits are of where that is not tokens: the labels of one that classifies texts.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> model
    Model(GPT2LMHeadModel, 2 layers, width 32, cpu, float32)
    >>> list(model.sites)[:6]
    ['embed', 'attn_in.0', 'attn.0', 'mlp_in.0', 'mlp.0', 'resid.0']
    >>> acts = model.read(torch.tensor([[3, 1, 4]]), ["mlp.1"])
    >>> acts[model.site("mlp.1")].shape
    torch.Size([1, 3, 32])
    """

    def __init__(self, module: nn.Module, tokenizer: Any = None, *, layout: Layout | None = None):
        self.module = module
        self.tokenizer = tokenizer
        self.follower = Follower(module)
        self._level = 0  # how many of the library's own passes are under way, one in the other
        seen = observed(module)
        self.classes: tuple[str, ...] | None = text_classes(module, seen.output)
        self._whole = self.classes is not None
        try:
            self.layout = layout or discover(module, seen)
        except ValueError as error:
            raise ValueError(missing_layout(module, seen, str(error))) from None
        self.sites: Mapping[str, Site] = MappingProxyType(name_sites(module, self.layout, seen))
        self._named = dict(self.sites) | heads(module, self.layout, seen)
        self._named |= middles(module, self.layout, self.sites, seen)
        self._placed = dict(self._named)
        if set(self.sites) <= {"embed"}:
            why = "no block hands on a tensor (batch pos width), as sites must"
            raise ValueError(missing_layout(module, seen, why))
        self._templates = [call.raw if (call := seen.once(block)) else None for block in self.blocks]
        seen.forget()
        self._seen = seen

    @classmethod
    def load(
        cls,
        source: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> Model:
        """A model from the Hugging Face hub, a folder, a .gguf file, or a module at hand.

        The module is put in eval mode and its weights are frozen, in place. A module of your own maps
        tokens (batch pos) to logits (batch pos vocab), or to an object with `.logits`. `layout` says where
        the parts are in a model whose structure is not found by itself. The tokenizer that lies beside the
        model is loaded; where there is none, `tokenizer` is None.

        Raises FileNotFoundError where there is nothing at `source`, and ValueError where there is no
        causal language model or no layout is found.
        """
        module, tokenizer = load(source, tokenizer=tokenizer, device=device, dtype=dtype)
        return cls(module, tokenizer, layout=layout)

    def __repr__(self) -> str:
        name, dtype = type(self.module).__name__, str(self.dtype).removeprefix("torch.")
        return f"Model({name}, {len(self.blocks)} layers, width {self.width}, {self.device}, {dtype})"

    @property
    def device(self) -> torch.device:
        """Where the tokens go in."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def width(self) -> int:
        """Size of the residual stream (`d_model`)."""
        last = last_call(self.blocks, self._seen)
        return (last.width if last else 0) or self.sites["embed"].width

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder layers."""
        return list(self.module.get_submodule(self.layout.blocks).children())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the architecture and a sample of the weights: the same wherever the model is the same."""
        return fingerprint(self.module)

    @property
    def fingerprints(self) -> frozenset[str]:
        """Those of the models whose directions mean here what they mean there: this one alone, as a rule."""
        return frozenset({self.fingerprint})

    # Sites

    def site(self, name: str | Site) -> Site:
        """The site of that name, `heads.N`, `mid.N` and those made by `at` among them.

        `heads.N` is what enters the output projection of an attention; `mid.N` is the residual stream between
        the sub-layers of a block, where they run one after the other. Raises LookupError for other names.
        """
        if isinstance(name, Site):
            return self._placed.setdefault(name.name, name)
        if name in self._placed:
            return self._placed[name]
        raise LookupError(f"No site {name!r}; this model has {ranges(self._named)}.")

    def block_of(self, site: Site) -> int | None:
        """Index of the block that a site lies in; None for what lies before or after the blocks."""
        prefix = f"{self.layout.blocks}."
        if not site.path.startswith(prefix):
            return None
        return int(site.path.removeprefix(prefix).split(".")[0])

    def at(self, path: str, side: Side = "out", name: str | None = None) -> Site:
        """A site anywhere: what enters or leaves the module at `path`.

        Raises LookupError where there is no such module, and ValueError where no tensor (batch pos width)
        passes it exactly once in a forward pass.
        """
        if path not in dict(self.module.named_modules()):
            raise LookupError(f"No module {path!r}; for instance {self.layout.blocks}.0 is one.")
        site = place(self.module, path, side, name or (path if side == "out" else f"{path}.in"), self._seen)
        if site is None:
            calls = len(self._seen.calls.get(id(self.module.get_submodule(path)), ()))
            why = "of shape (batch pos width)" if calls == 1 else f"alone: it runs {calls} times in a pass"
            raise ValueError(f"No site at the {side} side of {path!r}: no tensor passes there {why}.")
        return self.site(site)

    # Passes

    def visiting(self, sites: Iterable[str | Site], visit: Visit) -> AbstractContextManager[None]:
        """While open, every forward pass hands each site's tensor to `visit`, and goes on with its result.

        Visits may be nested: at a site that is visited twice, the visit opened first goes first. What
        `visit` returns has the shape of what it was handed, (batch pos width). All is undone on leaving,
        also by an exception.
        """
        level = self._level
        return visited(
            self.module,
            [self.site(site) for site in sites],
            visit,
            first=self.blocks[0],
            seen=self._seen,
            muted=lambda: self._level != level,
        )

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"] | None = None,
        *,
        last: int = 0,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits at every position, or at the `last` so many, where no others are worked out.

        A model that classifies texts gives those of the whole text, (batch 1 class). `mask` is 1 at tokens
        and 0 at padding, which is on the right. Raises ValueError where it is on the left, where a model's
        results at the tokens depend on the padding, and for tokens or places without an embedding.
        """
        wanted: dict[str, Any] = {}
        if mask is not None and not mask.all():
            if (mask[:, 1:].bool() > mask[:, :-1].bool()).any():
                raise ValueError(
                    "mask: there is padding on the left; pad on the right, or batch equal lengths."
                )
            if not self.pads:
                raise ValueError(
                    f"mask: what {type(self.module).__name__} computes at its tokens changes with padding; "
                    "batch prompts of equal length."
                )
            wanted["attention_mask"] = mask.to(self.device).long()
            tokens = ended(self.module, tokens, mask) if self._whole else tokens
        if last:
            wanted["logits_to_keep"] = last
        try:
            out = self.module(tokens.to(self.device), **arguments(self.module, **wanted))
        except IndexError as error:
            if "index out of range in self" not in str(error):
                raise
            raise ValueError(
                f"{type(self.module).__name__} has no embedding for a token, or for a place, of this pass: "
                f"rows of {tokens.shape[1]} tokens, none above {int(tokens.max())}. Give shorter texts, and "
                "tokens of its own tokenizer."
            ) from error
        return logits_of(out)[:, -last:]

    @torch.no_grad()
    def read(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[str | Site],
        mask: Int[Tensor, "batch pos"] | None = None,
    ) -> dict[Site, Float[Tensor, "batch pos width"]]:
        """The tensors at some sites, in the order in which the pass reaches them, without gradients."""
        seen: dict[Site, list[Tensor]] = {}

        def keep(site: Site, x: Tensor) -> Tensor:
            seen.setdefault(site, []).append(x)
            return x

        with self.visiting(sites, keep):
            self.logits(tokens, mask)
        if not self.follower.parted:
            return {site: parts[-1] for site, parts in seen.items()}
        # Where a state is changed on the way, the pass is made in parts.
        if any(len(x) != len(tokens) for parts in seen.values() for x in parts):
            raise ValueError("As its state is changed, this model reads row by row: give one row at a time.")
        return {site: torch.cat(parts, dim=1) for site, parts in seen.items()}

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits that the model would give if this were what its last block wrote.

        The model's own forward pass with its blocks skipped: final norm, head, soft cap and logit scale are
        its own. Gradients flow; open visits see nothing of it. Raises ValueError where the head reads
        anything else than what the last block wrote.
        """
        if not self._unembeds:
            raise ValueError(
                f"The head of {type(self.module).__name__} reads more than one tensor (batch pos width) from "
                "the last block; there is no unembedding of it alone."
            )
        return self._unembed(resid)

    @torch.no_grad()
    def record(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None
    ) -> Record:
        """What every block returns in a pass over these tokens, to resume from."""
        outputs: dict[nn.Module, Any] = {}
        handles = []

        def keep(block: nn.Module, _args: Any, out: Any) -> None:
            outputs[block] = map_tensors(torch.clone, out) if self._changes(block) else out

        try:
            for block in self.blocks:
                # Ahead of visits: they will see what a resumed block returns, as they see a block's own.
                handles.append(block.register_forward_hook(keep, prepend=True))
            self.logits(tokens, mask)
        finally:
            for handle in handles:
                handle.remove()
        return Record((tokens.shape[0], tokens.shape[1]), tuple(outputs.get(block) for block in self.blocks))

    @contextmanager
    def resuming(self, record: Record, *, block: int, repeat: int = 1) -> Iterator[None]:
        """While open, a pass starts at a block: the blocks before it return what `record` holds.

        A pass is then given the recorded tokens, `repeat` times over (`tokens.repeat(repeat, 1)`), and the
        recorded rows are repeated likewise. Sites inside the skipped blocks are not reached, `resid` sites
        of the skipped blocks are. Where `model.resumes` is False this gives wrong results.
        """
        with returning(
            {module: self._recorded(i, record, repeat) for i, module in enumerate(self.blocks[:block])}
        ):
            yield

    def probed(
        self,
        probe: Classifier,
        *,
        at: str | Site,
        pool: Pool = mean,
        classes: Sequence[str] | None = None,
    ) -> ProbedModel:
        """The same model as a classifier: its logits are what a probe says of pooled activations at a site.

        `pool` says what the probe reads of a text: `pooling.mean`, `pooling.last`, or any callable of that
        form; `classes` are the names of what it tells apart. See `ProbedModel` for its errors.
        """
        from .probed import ProbedModel

        return ProbedModel(self, probe, at=at, pool=pool, classes=classes)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While open, passes are of the bare model: visits opened outside leave them alone."""
        self._level += 1
        try:
            yield
        finally:
            self._level -= 1

    # Text

    def generate(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None, **kwargs: Any
    ) -> Int[Tensor, "batch longer"]:
        """Tokens and their continuation, as `interventions.generation.generate` gives them."""
        from .generation import generate

        return generate(self, tokens, mask, **kwargs)

    def complete(self, texts: str | Sequence[str], **kwargs: Any) -> Any:
        """What the model writes after a text, or after each of several; see `generation.complete`."""
        from .generation import complete

        return complete(self, texts, **kwargs)

    def stream(self, text: str, **kwargs: Any) -> Iterator[str]:
        """What the model writes after a text, piece by piece as it is written; see `streaming.stream`."""
        from .streaming import stream

        return stream(self, text, **kwargs)

    def text(self, ids: Int[Tensor, " pos"]) -> str:
        """The text that tokens stand for. Raises ValueError where the model has no tokenizer."""
        if self.tokenizer is None:
            raise ValueError("This model has no tokenizer: pass one to `Model.load`.")
        return self.tokenizer.decode([i for i in ids.tolist() if i >= 0])

    # Which tokens a pass is over

    @property
    def passage(self) -> Passage | None:
        """Which tokens the pass under way is over; None outside of one, and where nobody follows."""
        return self.follower.passage

    def following(self, prompt: Prompt | None = None) -> AbstractContextManager[Follower]:
        """While open, `passage` is kept; `prompt` is how many tokens of other passes than those of `generate`
        are prompt, by default all."""
        return self.follower.following(prompt)

    @property
    def carrying(self) -> Model:
        """The model whose passes are made in parts where a state is to be changed: this one, as a rule."""
        return self

    # What a model can do, tried out once on a few tokens

    def close(self, x: Tensor, y: Tensor) -> bool:
        """Whether two results are the same but for rounding."""
        # Parts of float64 models compute in float32 (routers, scans), and other batch sizes round otherwise.
        tolerance = max(torch.finfo(x.dtype).eps ** 0.5, 1e-4)
        off = (x - y).abs().where(x != y, 0)  # tokens that are ruled out have logits of minus infinity
        return bool(off.max() <= tolerance * y.abs().where(y.isfinite(), 0).max())

    @cached_property
    def resumes(self) -> bool:
        """Whether passes may be resumed: whether blocks know of earlier ones only by what those return."""
        tokens, n = sample(self.module), len(self.blocks)
        with self.apart(), torch.no_grad():
            try:
                whole, record = self.logits(repeated(tokens, 2)), self.record(tokens)
                for block in sorted({min(1, n - 1), n // 2, n - 1}):
                    with self.resuming(record, block=block, repeat=2):
                        if not self.close(self.logits(repeated(tokens, 2)), whole):
                            return False
            except _FAILURES:
                return False
        return True

    @cached_property
    def pads(self) -> bool:
        """Whether the results at tokens are the same with and without padding to their right."""
        tokens = sample(self.module, 2, 5)
        mask = torch.ones_like(tokens)
        mask[:, 3:] = 0
        with self.apart(), torch.no_grad():
            short = self.logits(tokens[:, :3])
            told = arguments(self.module, attention_mask=mask)
            out = self.module(ended(self.module, tokens, mask) if self._whole else tokens, **told)
        return self.close(logits_of(out)[:, : short.shape[1]], short)

    @cached_property
    def writes(self) -> str:
        """In what way the model's text follows its own logits; see `ways.way_of_writing`."""
        from .ways import way_of_writing

        if self._whole:
            raise ValueError(f"{type(self.module).__name__} classifies texts, and writes none.")
        return way_of_writing(self)

    @cached_property
    def lingers(self) -> bool:
        """Whether the module keeps something of its last cached pass, which the next one would go on from."""
        from .ways import lingers

        return lingers(self)

    @cached_property
    def _unembeds(self) -> bool:
        """Whether the head reads what the last block wrote, and nothing else."""
        tokens = sample(self.module)
        with self.apart(), torch.no_grad():
            resid = hidden(self.record(tokens).outputs[self._last])
            try:
                logits = self.logits(tokens)
                return resid is not None and self.close(self._unembed(resid[:, -logits.shape[1] :]), logits)
            except _FAILURES:
                return False

    # nnsight

    @cached_property
    def nnsight(self) -> Any:
        """The same module as an nnsight model, for free-form tracing and remote execution.

        A `TransformersModel` where the module is of transformers and has a tokenizer, else an `NNsight`.
        """
        from nnsight import NNsight, TransformersModel

        if hasattr(self.module, "config") and self.tokenizer is not None:
            return TransformersModel(self.module, tokenizer=self.tokenizer)
        return NNsight(self.module)

    # Private

    @property
    def _last(self) -> int:
        """Index of the last block that runs."""
        return max(i for i, template in enumerate(self._templates) if template is not None)

    def _unembed(self, resid: Tensor) -> Tensor:
        x = resid.reshape(-1, 1, resid.shape[-1])
        outputs = {
            block: passing(template, x if i == self._last else None)
            for i, (block, template) in enumerate(zip(self.blocks, self._templates, strict=True))
        }
        tokens = sample(self.module, 1, 1).expand(len(x), 1)
        with self.apart(), returning(outputs):
            logits = self.logits(tokens)
        return logits.reshape(*resid.shape[:-1], -1)

    def _recorded(self, i: int, record: Record, repeat: int) -> Callable[..., Any]:
        """A block's forward that returns what was recorded of it."""
        block, output = self.blocks[i], map_tensors(lambda x: repeated(x, repeat), record.outputs[i])
        own, level = block.forward, self._level

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._level != level:
                return own(*args, **kwargs)
            return map_tensors(torch.clone, output) if self._changes(block) else output

        return forward

    def _changes(self, block: nn.Module) -> bool:
        """Whether what a block returns is written to in place by what comes after."""
        call = self._seen.once(block)
        return call is not None and "out" in call.changed


def ranges(names: Iterable[str]) -> str:
    """`embed, mlp.0 to mlp.5` for a list of site names."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(name.partition(".")[0], []).append(name)
    return ", ".join(" to ".join([n[0], n[-1]] if len(n) > 1 else n) for n in stems.values())
