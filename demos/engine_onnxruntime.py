"""Sample from a model in ONNX Runtime, which hands its state from one run to the next.

    pip install onnx onnxruntime
    python demos/engine_onnxruntime.py

The model is a GRU of random weights, made here, so its text is a row of ids without a meaning. Its
state takes the place of the cache of keys and values that an exported transformer has: the prompt
is read once, and then each new token alone. `session.run` returns NumPy arrays, and the row of the
last position goes to the sampler as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sampler import Sampler
from sampler.history import History

if TYPE_CHECKING:
    import onnxruntime

VOCAB, HIDDEN = 500, 32
GRAPH = f"""<ir_version: 10, opset_import: ["": 21]>
gru (int64[length] ids, float[1, 1, {HIDDEN}] state)
    => (float[length, {VOCAB}] logits, float[1, 1, {HIDDEN}] next) {{
  embedded = Gather(table, ids)
  one = Constant<value_ints = [1]>()
  batch = Unsqueeze(embedded, one)
  outputs, next = GRU<hidden_size = {HIDDEN}>(batch, W, R, , , state)
  middle = Constant<value_ints = [1, 2]>()
  hidden = Squeeze(outputs, middle)
  logits = MatMul(hidden, head)
}}"""


def session(seed: int = 0) -> onnxruntime.InferenceSession:
    """Return the model: ids and a state to logits of shape (length, vocab) and the next state."""
    import onnx.parser
    import onnxruntime

    model = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(seed)
    gates = (1, 3 * HIDDEN, HIDDEN)
    shapes = {"table": (VOCAB, HIDDEN), "W": gates, "R": gates, "head": (HIDDEN, VOCAB)}
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def write(
    session: onnxruntime.InferenceSession, s: Sampler, prompt: list[int], max_new_tokens: int
) -> list[int]:
    """Return the new tokens of a text that begins with `prompt`."""
    h = History(prompt)
    ids, state = np.array(prompt), np.zeros((1, 1, HIDDEN), np.float32)
    for _ in range(max_new_tokens):
        logits, state = session.run(["logits", "next"], {"ids": ids, "state": state})
        token = s.sample(logits[-1], history=h, steps=len(h)).tokens
        h.accept(token)
        ids = np.array([token])
    return h.output


def main() -> None:
    s = Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=7)
    print(*write(session(), s, prompt=[11, 12, 13], max_new_tokens=30))


if __name__ == "__main__":
    main()
