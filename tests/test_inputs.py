"""Every container and layout that holds logits gives the same bits; the rest is refused by name."""

import array
import math
from dataclasses import fields

import ml_dtypes
import numpy as np
import pytest
import torch

import sampler.torch
from sampler import Sampler, _inputs, _tensors, log_softmax, logsumexp, softmax, temperature
from sampler.testing import check_draws

VOCAB = 1100  # more than one block of the core, and no whole number of groups
BATCH = 3
SETTINGS = (
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 50, "ties": "all"},
    {"temperature": 1.5, "min_p": 0.05, "min_tokens_to_keep": 3},
    {"temperature": 0.0},
)
FLOATS = ("float16", "bfloat16", "float32", "float64")
FAMILY = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "softmax_jacobian",
    "softmax_dtemperature",
)


def grid(shape, seed=0):
    """Logits that every one of the dtypes holds exactly, with ties and -inf among them."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(0, 3, shape) * 8) / 8
    x = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    x[..., ::17] = -np.inf
    return x


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def assert_same(given, plain, **options):
    """`given` and the contiguous float64 array of equal values lead to the same bits."""
    for settings in SETTINGS:
        s = Sampler(**settings, seed=3)
        assert np.array_equal(Sampler(**settings, seed=3)(given, **options), s(plain))
        for n in (None, 4):
            a = s.sample(given, steps=5, n=n, logprobs=6, raw=True, **options)
            b = s.sample(plain, steps=5, n=n, logprobs=6, raw=True)
            for field in fields(a):
                left, right = (np.asarray(getattr(r, field.name)) for r in (a, b))
                assert left.dtype == right.dtype
                assert left.shape == right.shape
                assert left.tobytes() == right.tobytes(), (settings, field.name)


def filtered_equal(given, plain, **options):
    s = Sampler(temperature=0.5, top_k=50, top_p=0.9, seed=3)
    got, want = s.filter(given, **options), s.filter(plain)
    if isinstance(got, torch.Tensor):
        got = got.double().numpy()
    elif options:
        got = got.view(ml_dtypes.bfloat16)
    assert np.array_equal(np.asarray(got, dtype=np.float64), want)


# ------------------------------------------------------------------------------ what comes in


def strided(x, step):
    wide = np.full((*x.shape[:-1], x.shape[-1] * step), 99, x.dtype)
    wide[..., ::step] = x
    return wide[..., ::step]


def unaligned(x):
    view = np.frombuffer(b"\0" + x.tobytes(), dtype=np.uint8)[1:].view(x.dtype).reshape(x.shape)
    assert not view.flags.aligned
    return view


def structured(x):
    record = np.zeros(x.shape, np.dtype([("id", "i4"), ("logit", x.dtype), ("p", "f4")]))
    record["logit"] = x
    view = record["logit"]
    assert view.strides[-1] == 8 + x.itemsize
    return view


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "rows reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "every third": lambda x: strided(x, 3),
    "structured": structured,
    "read-only": read_only,
    "unaligned": unaligned,
    "padded rows": lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 5)])[..., : x.shape[-1]],
}


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_layout(dtype, layout, ndim):
    plain = grid((BATCH, VOCAB) if ndim == 2 else VOCAB)
    view = LAYOUTS[layout](plain.astype(dtype_of(dtype)))
    assert np.array_equal(view.astype(np.float64), plain)
    assert_same(view, plain)
    filtered_equal(view, plain)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "<f2", "<f4", "<f8"])
def test_byte_order(dtype, ndim):
    plain = grid((BATCH, VOCAB) if ndim == 2 else VOCAB)
    given = plain.astype(dtype)
    assert_same(given, plain)
    assert_same(structured(given), plain)
    filtered_equal(given, plain)


@pytest.mark.parametrize("dtype", FLOATS)
def test_stride_0(dtype):
    row = grid(VOCAB).astype(dtype_of(dtype))
    batch = np.broadcast_to(row, (BATCH, VOCAB))
    assert batch.strides[0] == 0
    assert_same(batch, np.tile(row.astype(np.float64), (BATCH, 1)))
    flat = np.broadcast_to(dtype_of(dtype).type(1.5), (BATCH, VOCAB))
    assert flat.strides == (0, 0)
    assert_same(flat, np.full((BATCH, VOCAB), 1.5))


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 63, 64, 65, 1023, 1024, 1025])
@pytest.mark.parametrize("dtype", FLOATS)
def test_short_rows(dtype, vocab):
    plain = np.round(np.random.default_rng(vocab).normal(0, 3, (2, vocab)) * 8) / 8
    assert_same(plain.astype(dtype_of(dtype)), plain)
    assert_same(strided(plain.astype(dtype_of(dtype)), 3), plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_widening_every_16_bit_value(dtype):
    words = np.arange(2**16, dtype=np.uint16)
    values = words.view(dtype_of(dtype))
    values = values[values < np.inf]
    plain = values.astype(np.float64)
    for given in (values, strided(values, 3)):
        # Depth is no bar to being kept, so the ids are every finite value in rank.
        ids = Sampler().distribution(given).ids
        assert np.array_equal(ids, np.argsort(-plain, kind="stable")[: len(ids)])
        assert len(ids) == np.isfinite(plain).sum()
        assert np.array_equal(Sampler().filter(given), values)
        assert np.array_equal(softmax(given), softmax(plain.astype(np.float32)))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_torch(dtype, ndim, grad):
    plain = grid((BATCH, VOCAB) if ndim == 2 else VOCAB)
    kind = getattr(torch, dtype)
    tensor = torch.tensor(plain, dtype=kind, requires_grad=grad)
    assert_same(tensor, plain)
    with torch.no_grad():
        filtered_equal(tensor, plain)
    wide = torch.zeros(*plain.shape, 3, dtype=kind)
    wide[..., 1] = tensor.detach()
    assert_same(wide[..., 1].requires_grad_(grad), plain)
    if ndim == 2:
        assert_same(tensor.t().contiguous().t(), plain)
        assert_same(tensor[:1].expand(4, VOCAB), np.tile(plain[0], (4, 1)))


def test_torch_parameter_and_conjugate_bits():
    plain = grid(VOCAB)
    assert_same(torch.nn.Parameter(torch.tensor(plain)), plain)
    finite = np.where(np.isfinite(plain), plain, -40.0)
    negated = torch.complex(torch.zeros(VOCAB), torch.tensor(-finite).float()).conj().imag
    assert negated.is_neg()
    assert_same(negated, finite)


def test_torch_under_inference_mode():
    plain = grid(VOCAB)
    with torch.inference_mode():
        assert_same(torch.tensor(plain, dtype=torch.bfloat16), plain)


def test_bfloat16_tensor_is_not_copied():
    tensor = torch.zeros(2, VOCAB, dtype=torch.bfloat16)
    assert _inputs.read(tensor).array.__array_interface__["data"][0] == tensor.data_ptr()
    assert _inputs.read(tensor[:, ::3]).array.strides == (2 * VOCAB, 6)


@pytest.mark.parametrize("words", [np.uint16, np.int16, torch.uint16, torch.int16])
@pytest.mark.parametrize("ndim", [1, 2])
def test_raw_bfloat16_words(words, ndim):
    plain = grid((BATCH, VOCAB) if ndim == 2 else VOCAB)
    raw = plain.astype(ml_dtypes.bfloat16).view(np.int16)
    if isinstance(words, torch.dtype):
        given = torch.from_numpy(raw.copy()).view(words)
        assert_same(given, plain, dtype="bfloat16")
        got = Sampler(temperature=0.5).filter(given, dtype="bfloat16")
        assert isinstance(got, torch.Tensor)
        got = got.view(torch.bfloat16).double().numpy()
    else:
        given = raw.view(words)
        for layout in (LAYOUTS["reversed"], LAYOUTS["every third"], LAYOUTS["structured"]):
            assert_same(layout(given), plain, dtype="bfloat16")
        assert_same(given, plain, dtype="bfloat16")
        filtered_equal(given, plain, dtype="bfloat16")
        got = Sampler(temperature=0.5).filter(given, dtype="bfloat16")
        assert got.dtype == words
        got = got.view(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(got, plain * 2)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists(kind, ndim):
    plain = grid((BATCH, VOCAB) if ndim == 2 else VOCAB)
    given = kind(plain.tolist()) if ndim == 1 else kind(kind(row) for row in plain.tolist())
    assert_same(given, plain)
    assert Sampler(temperature=0.5).filter(given).dtype == np.float64


def test_lists_of_other_things():
    plain = grid((BATCH, VOCAB))
    assert_same([np.float32(v) for v in plain[0]], plain[0])
    assert_same(list(plain.astype(np.float16)), plain)
    assert_same([3, 1, 2], np.array([3.0, 1.0, 2.0]))


class Foreign:
    """An array of somebody else's, known by its __array__ alone."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Capsule:
    """An array known by DLPack alone."""

    def __init__(self, array, device=None):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [Foreign, Capsule])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_foreign_arrays(dtype, wrap):
    plain = grid((BATCH, VOCAB))
    assert_same(wrap(plain.astype(dtype)), plain)
    assert_same(wrap(plain.astype(dtype)[0, ::-1]), plain[0, ::-1])


def test_foreign_bfloat16():
    plain = grid((BATCH, VOCAB))
    assert_same(Foreign(plain.astype(ml_dtypes.bfloat16)), plain)


@pytest.mark.parametrize("code", ["f", "d"])
def test_buffers(code):
    plain = grid(VOCAB)
    assert_same(array.array(code, plain), plain)
    for buffer in (array.array(code, plain), memoryview(array.array(code, plain))):
        assert Sampler().filter(buffer).dtype == code
    assert_same(memoryview(array.array(code, plain)), plain)
    assert_same(memoryview(array.array(code, plain))[::-1], plain[::-1].copy())


def test_subclass_of_ndarray():
    plain = grid((BATCH, VOCAB))
    # A matrix warns of its own end; any subclass will do.
    assert_same(plain.astype(np.float32).view(np.recarray), plain)


# ----------------------------------------------------------------------------- past 2**31 logits


def test_rows_far_apart(tmp_path):
    # Two rows, and then five logits, more than 2**31 elements apart: in a file of holes.
    vocab, apart = 1000, 2**31 + 64
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(2 * (apart + vocab))
    memory = np.memmap(tmp_path / "holes", np.float16, "r+")
    far = np.lib.stride_tricks.as_strided(memory, (2, vocab), (2 * apart, 2))
    plain = grid((2, vocab))
    far[:] = plain
    assert_same(far, plain)
    assert_same(far[::-1], plain[::-1].copy())
    logits = memory[:: 2**29]
    logits[:] = [1, 3, 2, 0, 2.5]
    assert_same(logits, np.array([1, 3, 2, 0, 2.5]))
    assert_same(logits[::-1], np.array([2.5, 0, 2, 3, 1]))


def test_batch_of_more_than_2_31_logits():
    vocab, batch = 2**20, 2**11 + 2
    row = grid(vocab).astype(np.float16)
    view = np.broadcast_to(row, (batch, vocab))
    s = Sampler(top_k=5, seed=1)
    tokens = s(view)
    assert len(tokens) == batch
    for i in (0, 1, batch // 2, batch - 1):
        assert tokens[i] == s.sample(row, streams=i, steps=0).tokens


def test_invalid_row_past_2_31():
    # A batch of more than 2**31 logits, read no further than its first rows.
    view = np.lib.stride_tricks.as_strided(
        np.array([1, 2, np.nan, 4], np.float16), (2**31, 2), (2, 2), writeable=False
    )
    with pytest.raises(ValueError, match="row 1 has nan at token 1"):
        Sampler(seed=1).filter(view[: 2**20])


# ------------------------------------------------------------------------------- never written to


@pytest.mark.parametrize("dtype", FLOATS)
def test_input_is_never_written(dtype):
    x = grid((BATCH, VOCAB)).astype(dtype_of(dtype))
    before = x.tobytes()
    tensor = torch.tensor(x.astype(np.float64), dtype=getattr(torch, dtype))
    copy = tensor.clone()
    for settings in SETTINGS:
        s = Sampler(**settings, seed=3)
        for given in (x, tensor, x[::-1, ::-1]):
            s(given)
            s.sample(given, n=3, logprobs=4)
            s.filter(given)
            s.distribution(given[0])
            for function in (softmax, log_softmax, logsumexp):
                function(given, temperature=0.7)
                function(given, axis=0)
    assert x.tobytes() == before
    assert torch.equal(tensor, copy)


def everything(x):
    """Every public function that reads a tensor of floats, by its name: {name: call of x}."""
    row = np.zeros(3)
    return {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "sigmoid": sampler.sigmoid,
        "softmax_jacobian": sampler.softmax_jacobian,
        "softmax_jvp": lambda x: sampler.softmax_jvp(row, x),
        "softmax_vjp": lambda x: sampler.softmax_vjp(x, row),
        "softmax_dtemperature": sampler.softmax_dtemperature,
        "cross_entropy": lambda x: sampler.cross_entropy(x, 0),
        "cross_entropy_grad": lambda x: sampler.cross_entropy_grad(row, x / 3),
        "entropy": temperature.entropy,
        "perplexity": temperature.perplexity,
        "temperature_for_entropy": lambda x: temperature.temperature_for_entropy(x, math.log(3)),
        "temperature_for_perplexity": lambda x: temperature.temperature_for_perplexity(row, x[0]),
        "fit_temperature": lambda x: temperature.fit_temperature(x[None], [0]),
        "reliability": lambda x: temperature.reliability(x[None] / 3, [0]),
        "expected_calibration_error": (
            lambda x: temperature.expected_calibration_error(x[None] / 3, [0])
        ),
        "distillation_loss": lambda x: temperature.distillation_loss(row, x),
        "distillation_loss_grad": lambda x: temperature.distillation_loss_grad(x, row),
        "Sampler.filter": lambda x: Sampler().filter(x),
        "Sampler.score": lambda x: Sampler().score(x, 0),
        "Sampler.distribution": lambda x: Sampler().distribution(x),
        "Distribution.draw": lambda x: Sampler().distribution(row).draw(x / 3),
        "check_draws": lambda x: check_draws([0, 1, 2], x / 3),
    }


@pytest.mark.parametrize("name", everything(None))
def test_a_graph_is_not_cut_without_a_word(name):
    # `sampler.cross_entropy(x, t) + 0.01 * (x**2).sum()` trained on its last term alone.
    call = everything(None)[name]
    x = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    if name == "temperature_for_perplexity":
        x = x.detach().mul(3).requires_grad_()
    use = rf"use sampler\.torch\.{name}, or " if name in sampler.torch.__all__ else ""
    text = rf"^`\w+` requires grad, and {name} would silently cut its graph: {use}pass \w+\."
    with pytest.raises(TypeError, match=text):
        call(x)
    with torch.no_grad():
        call(x)
    call(x.detach())


@pytest.mark.parametrize(
    "call",
    [
        lambda t: softmax(np.eye(2), temperature=t),
        lambda t: log_softmax(np.eye(2), temperature=t[0]),
        lambda t: logsumexp(np.eye(2), out=t),
        lambda t: sampler.cross_entropy(np.zeros((1, 2)), t[None] / 2),
        lambda t: sampler.softmax_jvp(np.eye(2), np.eye(2), temperature=t),
        lambda t: sampler.softmax_dtemperature(np.eye(2), temperature=t),
        lambda t: temperature.entropy(np.eye(2), temperature=t),
    ],
)
def test_no_argument_cuts_a_graph(call):
    t = torch.ones(2, dtype=torch.float64)
    call(t.clone())
    with pytest.raises(TypeError, match=r"^`(temperature|targets|out)` requires grad, and "):
        call(t.requires_grad_())
    with torch.inference_mode():
        call(t)


def test_only_what_takes_the_tensor_is_recommended():
    # sampler.torch.softmax, which the message named, takes no tensor as its temperature.
    t = torch.ones(2, dtype=torch.float64, requires_grad=True)
    x = np.eye(2)
    divide = r"graph: divide the logits by it and use sampler\.torch\.{}, or pass temperature\.det"
    for name in ("softmax", "log_softmax", "logsumexp"):
        function = getattr(sampler, name)
        with pytest.raises(TypeError, match=divide.format(name)):
            function(x, temperature=t)
        for option in ("out", "where"):
            with pytest.raises(TypeError, match=rf"graph: pass {option}\.detach\(\)$"):
                function(x, **{option: t})
    with pytest.raises(TypeError, match=divide.format("entropy")):
        temperature.entropy(x, temperature=t)
    for function in (sampler.softmax_dtemperature, temperature.perplexity):
        with pytest.raises(TypeError, match=r"graph: pass temperature\.detach\(\)$"):
            function(x, temperature=t)
    with pytest.raises(TypeError, match=r"use sampler\.torch\.distillation_loss, or pass teacher"):
        temperature.distillation_loss(x[0], t)


def test_the_class_axis_of_sampler_torch_is_named():
    # With more than two axes the function that was named takes the classes along another.
    soft = torch.full((2, 3, 4), 0.25, requires_grad=True)
    for given in ((soft, np.zeros((2, 3), int)), (np.zeros((2, 3, 4)), soft)):
        with pytest.raises(TypeError, match=r"use sampler\.torch\.cross_entropy with dim=-1, or "):
            sampler.cross_entropy(*given)
    with pytest.raises(TypeError, match=r"use sampler\.torch\.cross_entropy, or pass logits\."):
        sampler.cross_entropy(soft[0], [0, 0, 0])
    with pytest.raises(TypeError, match=r"use sampler\.torch\.softmax, or pass x\.detach"):
        softmax(soft)


def test_a_list_of_tensors_that_require_grad():
    # It was NumPy's RuntimeError, "Can't call numpy() on Tensor that requires grad".
    t = torch.ones(2, requires_grad=True)
    for name, call in {
        "x": softmax,
        "logits": Sampler(),
        "temperature": lambda t: softmax(np.eye(2), temperature=t),
        "targets": lambda t: sampler.cross_entropy(np.eye(2), t),
        "student": lambda t: temperature.distillation_loss(t, np.eye(2)),
    }.items():
        for given in ([t, t], (t[0], 1.0)):
            with pytest.raises(TypeError, match=f"^`{name}` have to be one tensor, but are a list"):
                call(given)


def test_one_row_is_no_rows():
    with pytest.raises(ValueError, match=r"^`streams` has to be for 1 row, but is for 2$"):
        Sampler().sample(np.zeros((1, 3)), streams=[0, 1])


def test_sampler_torch_is_what_messages_name():
    with_others = set(sampler.torch.__all__) - {"kept_log_softmax"}  # has none without gradients
    assert list(_tensors.WITH_GRADIENTS) == sorted(with_others)


def test_tokens_are_drawn_of_tensors_that_require_grad():
    # A token has no gradient, as in torch.multinomial.
    x = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    sample = Sampler(top_k=1).sample(x)
    assert Sampler(top_k=1)(x) == sample.tokens == 1
    assert type(sample.tokens) is type(sample.logprobs) is torch.Tensor
    assert not sample.logprobs.requires_grad


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(layout):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    row = np.zeros(3)
    for call in (
        *(getattr(sampler, name) for name in FAMILY),
        temperature.entropy,
        temperature.perplexity,
        lambda t: sampler.softmax_vjp(row, t),
        lambda t: sampler.cross_entropy(t, 0),
        lambda t: sampler.cross_entropy(np.eye(2), t.long()),
        lambda t: softmax(np.eye(2), temperature=t),
        lambda t: softmax(np.eye(2), where=t > 0),
        lambda t: temperature.temperature_for_entropy(np.eye(2), t),
        lambda t: temperature.fit_temperature(np.eye(2) * 3, t.long()),
        lambda t: temperature.reliability(t, [0]),
        lambda t: temperature.distillation_loss(row, t),
        Sampler(),
        Sampler().sample,
        Sampler().filter,
        Sampler().distribution,
        lambda t: Sampler().score(np.eye(2), t.long()),
        lambda t: Sampler().sample(np.eye(2), streams=t.long()),
    ):
        with pytest.raises(
            TypeError, match=r"^`\w+` have to be a dense tensor, but (are|have) "
        ) as caught:
            call(nested)
        name = str(caught.value).split("`")[1]
        hint = f": pass torch.nested.to_padded_tensor({name}, -torch.inf)"
        assert str(caught.value).endswith(hint) == (name in ("x", "logits", "teacher"))
    assert torch.isfinite(logsumexp(torch.nested.to_padded_tensor(nested, -torch.inf))).all()
    x = torch.zeros(2, 3)
    for name in sampler.torch.__all__:
        function = getattr(sampler.torch, name)
        others = {
            "cross_entropy": (x,),
            "distillation_loss": (x,),
            "kept_log_softmax": (([0], []),),
        }
        given = (nested, *others.get(name, ()))
        with pytest.raises(TypeError, match=r"^`\w+` has to be a dense tensor, but (is|has) "):
            function(*given)
    with pytest.raises(TypeError, match=r"^`target` has to be a dense tensor, but is nested$"):
        sampler.torch.cross_entropy(x, nested)
    with pytest.raises(TypeError, match=r"to_padded_tensor\(input, -torch\.inf\)$"):
        sampler.torch.softmax(nested)


def test_filter_is_no_view_of_its_input():
    x = np.array([1.0, 2.0, 3.0])
    assert not np.shares_memory(Sampler().filter(x), x)
    t = torch.tensor([1.0, 2.0])
    assert Sampler().filter(t).data_ptr() != t.data_ptr()


# ----------------------------------------------------------------------------------- refused

ROW = np.array([1.0, 2.0, 3.0])
REFUSED = {
    "meta tensor": (torch.zeros(3, device="meta"), TypeError, "hold numbers.*meta"),
    "sparse tensor": (torch.zeros(2, 3).to_sparse(), TypeError, "dense.*sparse"),
    "integer tensor": (torch.arange(3), TypeError, "torch.int64"),
    "bool tensor": (torch.ones(3, dtype=torch.bool), TypeError, "torch.bool"),
    "complex tensor": (torch.ones(3, dtype=torch.complex64), TypeError, "torch.complex64"),
    "int16 tensor": (torch.ones(3, dtype=torch.int16), TypeError, "int16"),
    "float8 tensor": (torch.ones(3).to(torch.float8_e4m3fn), TypeError, "float8"),
    "DLPack elsewhere": (Capsule(ROW, (2, 0)), TypeError, "CPU.*Capsule"),
    "masked array": (np.ma.masked_array(ROW, [0, 1, 0]), TypeError, "masked array"),
    "int64": (np.arange(3), TypeError, "int64"),
    "uint16": (np.arange(3, dtype=np.uint16), TypeError, "uint16"),
    "bool": (ROW > 1, TypeError, "bool"),
    "complex": (ROW + 0j, TypeError, "complex128"),
    "long double": (ROW.astype(np.longdouble), TypeError, "longdouble|float128"),
    "object": (ROW.astype(object), TypeError, "object"),
    "strings": (np.array(["a", "b"]), TypeError, "<U1"),
    "structured": (np.zeros(3, np.dtype([("a", "f4")])), TypeError, "'a'"),
    "datetime": (np.array([1, 2], "M8[s]"), TypeError, "datetime64"),
    "float8": (ROW.astype(ml_dtypes.float8_e4m3fn), TypeError, "float8_e4m3fn"),
    "foreign integers": (Foreign(np.arange(3)), TypeError, "int64"),
    "integer buffer": (array.array("i", [1, 2]), TypeError, "int32"),
    "memoryview of integers": (memoryview(array.array("i", [1, 2])), TypeError, "int32"),
    "bytearray": (bytearray(b"123"), TypeError, "uint8|bytearray"),
    "string": ("123", TypeError, "str"),
    "bytes": (b"123", TypeError, "uint8|bytes"),
    "None": (None, TypeError, "NoneType"),
    "dict": ({0: 1.0}, TypeError, "dict"),
    "set": ({1.0}, TypeError, "set"),
    "iterator": (iter([1.0]), TypeError, "iterator"),
    "float": (1.5, TypeError, "float"),
    "NumPy scalar": (np.float32(1.5), ValueError, r"1-D or 2-D.*\(\)"),
    "0-D": (np.array(1.5), ValueError, r"1-D or 2-D.*\(\)"),
    "0-D tensor": (torch.tensor(1.5), ValueError, r"1-D or 2-D.*\(\)"),
    "3-D": (np.zeros((2, 3, 4)), ValueError, r"1-D or 2-D.*\(2, 3, 4\)"),
    "nested list": ([[[1.0]]], ValueError, r"1-D or 2-D.*\(1, 1, 1\)"),
    "no tokens": (np.zeros(0), ValueError, r"at least one token.*\(0,\)"),
    "rows of no tokens": (np.zeros((2, 0)), ValueError, r".*\(2, 0\)"),
    "no rows of no tokens": (np.zeros((0, 0)), ValueError, r".*\(0, 0\)"),
    "empty list": ([], ValueError, r"at least one token.*\(0,\)"),
    "ragged list": ([[1.0, 2.0], [3.0]], ValueError, "equal length"),
    "list of bool": ([True, False], TypeError, "bool"),
    "list of strings": (["1.0", "2.0"], TypeError, "<U3"),
    "list of None": ([1.0, None], TypeError, "object"),
    "list of complex": ([1.0, 1j], TypeError, "complex128"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    bad, error, words = REFUSED[name]
    s = Sampler(seed=1)
    for call in (s, s.sample, s.filter):
        with pytest.raises(error, match=f"^`logits` have to .*(?:{words})"):
            call(bad)
    with pytest.raises(error, match=rf"^`row` ha(?:s|ve) to .*(?:{words.replace(' or 2-D', '')})"):
        s.distribution(bad)
    assert s.step == 0


def test_distribution_takes_one_row():
    message = (
        r"^`row` has to be 1-D, but has shape \(1, 3\): give one of its rows, such as row\[0\]$"
    )
    with pytest.raises(ValueError, match=message):
        Sampler().distribution(ROW[None])


@pytest.mark.parametrize(
    ("logits", "dtype", "error", "words"),
    [
        (ROW, "bfloat16", TypeError, "16-bit integers.*float64"),
        (ROW.astype(np.float16), "bfloat16", TypeError, "16-bit integers.*float16"),
        (ROW.astype(ml_dtypes.bfloat16), "bfloat16", TypeError, "16-bit integers.*bfloat16"),
        (np.arange(3), "bfloat16", TypeError, "16-bit integers.*int64"),
        (np.arange(3, dtype=np.uint8), "bfloat16", TypeError, "16-bit integers.*uint8"),
        (np.arange(3, dtype=">u2"), "bfloat16", TypeError, "byte order"),
        (torch.zeros(3), "bfloat16", TypeError, "16-bit integers.*float32"),
        (torch.zeros(3, dtype=torch.bfloat16), "bfloat16", TypeError, "16-bit.*torch.bfloat16"),
        ([1, 2, 3], "bfloat16", TypeError, "16-bit integers.*float64"),
        (ROW, "float16", ValueError, "`dtype` has to be None or 'bfloat16', but is 'float16'"),
        (ROW, "bf16", ValueError, "`dtype` has to be"),
        (ROW, np.float32, (TypeError, ValueError), "`dtype` has to be"),
        (ROW, ROW, (TypeError, ValueError), "`dtype` has to be"),
    ],
)
def test_bad_dtype(logits, dtype, error, words):
    s = Sampler(seed=1)
    for call in (s, s.sample, s.filter):
        with pytest.raises(error, match=words):
            call(logits, dtype=dtype)
    assert s.step == 0


def test_refusal_does_not_read_a_device():
    class Device(Capsule):
        def __dlpack__(self, **options):
            raise AssertionError("copied from a device in silence")

        __array__ = __dlpack__

    with pytest.raises(TypeError, match="have to be on the CPU"):
        Sampler()(Device(ROW, (2, 0)))


# ------------------------------------------------------------------------------------ 0 rows


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_rows(dtype):
    x = np.zeros((0, 7), dtype_of(dtype))
    tensor = torch.zeros(0, 7, dtype=getattr(torch, dtype))
    s = Sampler(temperature=0.7, top_p=0.9, seed=1)
    for given in (x, tensor):
        tokens = s(given)
        assert tokens.shape == (0,)
        assert str(tokens.dtype).endswith("int64")
        for n in (None, 1, 4):
            for top in (None, 0, 3, 9):
                r = s.sample(given, n=n, logprobs=top, raw=True, streams=[], steps=[])
                shape = (0,) if n is None else (0, n)
                for name in (
                    "tokens",
                    "logprobs",
                    "raw_logprobs",
                    "ranks",
                    "n_kept",
                    "entropy",
                    "log_mass",
                ):
                    assert getattr(r, name).shape == shape, name
                for name in ("top_ids", "top_logprobs", "raw_top_ids", "raw_top_logprobs"):
                    got = getattr(r, name)
                    assert got.shape == (0, top) if top else got is None, name
        f = s.filter(given)
        assert type(f) is type(given)
        assert f.dtype == given.dtype
        assert tuple(f.shape) == (0, 7)
