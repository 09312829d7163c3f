"""Has llama.cpp load a control vector that `export_gguf` wrote, and says at which site its effect is ours.

    pip install xllamacpp==2026.10.11549
    python tests/golden/steering/in_llama_cpp.py MODEL.gguf MODEL_FOLDER

The wheel holds llama.cpp (build 11549) with its functions in the open; its loader of control vectors is C++
and is handed what that compiler makes of a vector of strings. For each layer that is tried, a line has the
cosines of what the vector does to the logits there and in `applied`, at that layer and at those beside it.
"""

from __future__ import annotations

import ctypes as c
import sys
import tempfile
from pathlib import Path

import torch

from interventions.model import Model
from interventions.permanent import export_gguf
from interventions.splice import applied
from interventions.tensor_edits import Add

LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
TEXT = "The capital of France is a city that"


class Params(c.Structure):
    """Parameters of any kind: handed on as they are."""

    _fields_ = [("all", c.c_byte * 1024)]


class Batch(c.Structure):
    _fields_ = [("n", c.c_int32), ("rest", c.c_void_p * 6)]


class Vector(c.Structure):
    _fields_ = [("begin", c.c_void_p), ("end", c.c_void_p), ("capacity", c.c_void_p)]


class Wanted(c.Structure):
    _fields_ = [("strength", c.c_float), ("file", c.c_void_p)]


class Loaded(c.Structure):
    _fields_ = [("width", c.c_int32), ("data", Vector)]


class LlamaCpp:
    def __init__(self, path: str):
        import xllamacpp

        self.lib = c.CDLL(str(Path(xllamacpp.__file__).parent / "xllamacpp.abi3.so"))
        p, n, size = c.c_void_p, c.c_int32, c.c_size_t
        for name, returns, *takes in [
            ("llama_backend_init", None),
            ("llama_model_default_params", Params),
            ("llama_context_default_params", Params),
            ("llama_model_load_from_file", p, c.c_char_p, Params),
            ("llama_init_from_model", p, p, Params),
            ("llama_model_n_layer", n, p),
            ("llama_batch_get_one", Batch, p, n),
            ("llama_decode", n, p, Batch),
            ("llama_get_logits_ith", c.POINTER(c.c_float), p, n),
            ("llama_set_adapter_cvec", n, p, p, size, n, n, n),
            ("llama_get_memory", p, p),
            ("llama_memory_clear", None, p, c.c_bool),
            (LOADER, Loaded, c.POINTER(Vector)),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = returns, takes
        self.lib.llama_backend_init()
        model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        self.layers = self.lib.llama_model_n_layer(model)
        self.context = self.lib.llama_init_from_model(model, self.lib.llama_context_default_params())

    def control(self, path: str | None) -> bool:
        """Sets or clears the control vector; False where llama.cpp refuses the file."""
        if path is None:
            return not self.lib.llama_set_adapter_cvec(self.context, None, 0, 0, -1, -1)
        name = path.encode()  # behind its length, its capacity, and how many share it
        string = c.create_string_buffer(len(name).to_bytes(8, "little") * 2 + bytes([1, *[0] * 7]) + name)
        wanted = Wanted(1.0, c.addressof(string) + 24)
        at, end = c.addressof(wanted), c.addressof(wanted) + c.sizeof(wanted)
        found = getattr(self.lib, LOADER)(Vector(at, end, end))
        if found.width < 0:
            return False
        n = (found.data.end - found.data.begin) // 4
        return not self.lib.llama_set_adapter_cvec(
            self.context, found.data.begin, n, found.width, 1, self.layers
        )

    def logits(self, tokens: list[int], vocab: int) -> torch.Tensor:
        """Those after the last token."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        ids = (c.c_int32 * len(tokens))(*tokens)
        batch = self.lib.llama_batch_get_one(c.addressof(ids), len(tokens))
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return torch.tensor(self.lib.llama_get_logits_ith(self.context, -1)[:vocab])


@torch.no_grad()
def main(gguf: str, folder: str) -> None:
    theirs, model = LlamaCpp(gguf), Model.load(folder)
    tokens = model.tokenizer.encode(TEXT)
    ours = model.logits(torch.tensor([tokens]))[0, -1]
    plain = theirs.logits(tokens, len(ours))
    print(f"unsteered: cosine {torch.cosine_similarity(plain, ours, dim=0):.4f}")
    path = str(Path(tempfile.mkdtemp()) / "v.gguf")
    last = len(model.blocks) - 1
    for layer in (1, 2, last // 4, last // 2, last - 1, last):
        x = model.read(torch.tensor([tokens]), [f"resid.{layer}"])[model.site(f"resid.{layer}")][0, -1]
        vector = torch.randn(model.width, generator=torch.Generator().manual_seed(layer))
        vector *= 0.7 * x.norm() / vector.norm()
        export_gguf({f"resid.{layer}": vector}, path, model)
        assert theirs.control(path)
        effect = theirs.logits(tokens, len(ours)) - plain
        theirs.control(None)
        found = []
        for near in range(layer - 1, min(layer + 1, last) + 1):
            with applied(model, Add({f"resid.{near}": vector})):
                here = model.logits(torch.tensor([tokens]))[0, -1] - ours
            found.append(f"resid.{near} {torch.cosine_similarity(effect, here, dim=0):.4f}")
        print(f"direction.{layer}: {', '.join(found)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
