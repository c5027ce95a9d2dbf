"""Record the next-token logits of SmolLM2-135M-Instruct after a few dozen varied prompts.

    python tests/data/record_logits.py

writes ``smollm2_logits.npz`` next to this script: ``logits``, float16 of shape (rows, 49152), and
``prompts``, the text each row follows, special tokens included. The tests resample these rows, so
that they see the shapes real models make (long tails, near ties, one token with nearly all of the
mass) and not only those that random numbers make.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
from _model import load

FILE = Path(__file__).with_name("smollm2_logits.npz")
MAX_BYTES = 2_900_000  # it is committed: 28 rows, not a corpus

# The system message that the model's chat template writes, so that chat rows are what chats see.
CHAT = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
)
PROMPTS = (
    # Chat: the first word of an answer, and places inside one.
    CHAT.format("What is the capital of France?", ""),
    CHAT.format("What is the capital of France?", "The capital of France is"),
    CHAT.format("Write a poem about the sea.", ""),
    CHAT.format("Give me a random word.", "The word is"),
    CHAT.format("Is 7 a prime number? Answer yes or no.", ""),
    CHAT.format("Tell me a joke.", "Why don't scientists trust atoms? Because they make up"),
    CHAT.format("Say hello.", "Hello! How can I help you today?"),
    # Prose: open and closed places, the start of a sentence, the middle of a word.
    "Once upon a time, there was a",
    "The old man walked slowly along the beach. He",
    "It was a bright cold day in April, and the clocks were striking thirteen. ",
    "The committee met on Tuesday to discuss the",
    "In my opinion, the most important thing in life is",
    "She opened the door and saw",
    "The photosyn",
    "To be, or not to be, that is the",
    # Code.
    "def fibonacci(n):\n    if n <",
    "import numpy as np\n\ndef softmax(x):\n    return np.",
    "for (int i = 0; i < n; i",
    "<html>\n  <head>\n    <title>",
    # Numbers.
    "1, 2, 3, 4, 5, 6, 7,",
    "The phone number is 555-01",
    "Pi is approximately 3.14159",
    # Lists.
    "Shopping list:\n- milk\n- bread\n- eggs\n-",
    "Monday, Tuesday, Wednesday, Thursday,",
    # Other languages: the model was trained on English, so these tend to be broad.
    "Der schnelle braune Fuchs springt über den",
    "Le petit chat est assis sur la",
    "東京は日本の",
    # Nothing at all: the start of a document.
    "<|endoftext|>",
)


def record() -> npt.NDArray[np.float16]:
    """Compute the logits that follow each prompt.

    Returns
    -------
    ndarray of shape (rows, vocab), float16
    """
    # A sum split over threads rounds differently with their number.
    torch.set_num_threads(1)
    model, tokenizer = load()
    rows = []
    for prompt in PROMPTS:
        # One prompt at a time: padding would change the last bits.
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            rows.append(model(**inputs).logits[0, -1].to(torch.float16).numpy())
    return np.stack(rows)


def summarize(row: npt.NDArray[np.float16]) -> tuple[float, float, int]:
    """Describe one row in three numbers.

    Parameters
    ----------
    row : ndarray of shape (vocab,), float16

    Returns
    -------
    largest : float
        The largest probability, at temperature 1.
    entropy : float
        In nats, at temperature 1.
    nucleus : int
        How many tokens top-p 0.9 keeps at temperature 0.8.
    """
    x = row.astype(np.float64)
    p = np.exp(x - x.max())
    p /= p.sum()
    tempered = np.sort(np.exp((x - x.max()) / 0.8))[::-1]
    mass = np.cumsum(tempered / tempered.sum())
    nucleus = int(np.searchsorted(mass, 0.9)) + 1
    return float(p.max()), float(-np.sum(p * np.log(np.maximum(p, 1e-300)))), nucleus


def main() -> None:
    """Record the rows, describe them, and write the file."""
    console = Console()
    logits = record()
    if not np.isfinite(logits).all():
        raise SystemExit("a logit is not finite in float16")

    table = Table("row", "after", "p max", "entropy", "top-p 0.9 at T 0.8")
    for index, (prompt, row) in enumerate(zip(PROMPTS, logits, strict=True)):
        largest, entropy, nucleus = summarize(row)
        # Text, not str: brackets in a prompt are no markup.
        after = Text(repr(prompt[-26:]))
        table.add_row(str(index), after, f"{largest:.4f}", f"{entropy:.2f}", str(nucleus))
    console.print(table)

    if FILE.exists():
        with np.load(FILE) as old:
            same = np.array_equal(old["logits"], logits)
        console.print("the same values as before" if same else "the values changed")
    np.savez_compressed(FILE, logits=logits, prompts=np.array(PROMPTS))
    size = FILE.stat().st_size
    console.print(f"{FILE.name}: {logits.shape[0]} rows, {size:,} bytes", highlight=False)
    if size > MAX_BYTES:
        raise SystemExit(f"{FILE.name} is over {MAX_BYTES:,} bytes: record fewer rows")


if __name__ == "__main__":
    main()
