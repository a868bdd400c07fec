"""Packed models in the cache: what is read is what was packed, and nothing damaged or of another version is read."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine import plan_of as tiny_plan_of
from tiny_models import CONFIGS, tiny_model

import clada
from clada.assembly import choose
from clada.cpu import kept
from clada.cpu.blocks.matrix import at_addresses
from clada.cpu.pack import PackedModel, pack
from clada.cpu.precision import PRECISIONS
from clada.engine import Engine
from clada.errors import InputError, ModelError
from clada.methods.coefficients import NONE
from clada.methods.observed import weight_sums
from clada.methods.plan import Shares, plan_of
from clada.methods.screen import Basis
from clada.models.anatomy import anatomy
from clada.models.description import Description
from clada.models.open import load_model, load_tokenizer, model_revision
from clada.models.tokenizer import Tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of its own for packed models."""
    monkeypatch.setattr(kept, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "packed"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny model with a tokenizer, in a folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("kept") / "model"
    tiny_model("llama", vocab_size=49152).save_pretrained(folder)
    load_tokenizer("smollm2-135m").save_pretrained(folder)
    return folder


def wait():
    """Until what is written in the background is written."""
    for thread in threading.enumerate():
        if thread.name == "clada-keep":
            thread.join()


def parts_of(weights):
    """All that kernels read of weights, by name."""
    tensors, constants = weights.tensors._asdict(), weights.constants._asdict()
    norms = {name: getattr(weights, name) for name in ("input_norm", "output_norm", "down_norm")}
    for name, memory in weights.memory.items():  # rows lie elsewhere in every process
        tensors[name] = at_addresses(tensors[name], memory, -1)
    memory = {f"memory of {name}": array for name, array in weights.memory.items()}
    return {**tensors, **constants, **norms, **memory, **vars(weights.rotation), "dtype": weights.dtype}


def assert_same(read, packed):
    expected, found = parts_of(packed), parts_of(read)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype, name
            assert found[name].flags.writeable, name  # kernels are compiled for arrays that can be written to
            aligned = found[name].ctypes.data % 64 == 0  # a line of the cache
            assert found[name].nbytes < 2**16 or aligned or name in packed.memory, name
            np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)
        else:
            assert found[name] == value, name
    of = "memory of " if packed.memory else ""
    for one, other in ((f"{of}embedding", f"{of}head"), (f"{of}gate", f"{of}up")):
        shared = np.shares_memory(expected[one], expected[other])
        assert np.shares_memory(found[one], found[other]) == shared  # a tied head is in memory once


def keep_and_read(name, model, tokenizer, dtype, basis=None, layout="matrix"):
    packed = pack(model, dtype, basis, layout=layout)
    kept.keep_packed(packed, layout, basis, Description.of(model), Tokenizer.of(tokenizer), weight_sums(model, packed))
    found = kept.find_kept(name, dtype, layout)
    return packed, found


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_embedded_models_are_read_as_they_were_packed(name, cache):
    model, tokenizer = load_model(name)
    plan = plan_of(name, model.config.num_hidden_layers, None)
    screening = choose("clada", plan, NONE, model.config.vocab_size, "int8").basis
    for dtype in PRECISIONS:
        basis = screening if dtype in ("int8", "file") else None
        packed, found = keep_and_read(name, model, tokenizer, dtype, basis)
        assert_same(found.weights(basis), packed)
        assert found.about.sums == weight_sums(model, packed)
        shutil.rmtree(cache)  # gigabytes
    described, expected = found.description, Description.of(model)
    assert (described.layers, described.vocabulary, described.positions, described.name) == (
        expected.layers, expected.vocabulary, expected.positions, name,
    )  # fmt: skip
    given = {key: value for key, value in vars(model.generation_config).items() if value is not None and key[0] != "_"}
    assert vars(described.generation) == given
    assert given["eos_token_id"] is not None


LAYOUTS = [(d, layout) for d, p in PRECISIONS.items() for layout in ("matrix", *([] if p.in_blocks else ["input"]))]


@pytest.mark.parametrize(("dtype", "layout"), [case for case in LAYOUTS if case[0] != "file"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_read_as_it_was_packed(family, dtype, layout, cache, tmp_path, plain_tokenizer):
    model = tiny_model(family, seed=3)
    model.save_pretrained(tmp_path / "model")
    model.name_or_path = str(tmp_path / "model")
    packed, found = keep_and_read(model.name_or_path, model, plain_tokenizer, dtype, layout=layout)
    assert_same(found.weights(None), packed)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in CONFIGS if family not in ("opt", "gpt2")),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {"rope_parameters": YARN}),
    ],
)
def test_rotary_embeddings_are_those_of_the_model(family, changes):
    model = tiny_model(family, **changes)
    weights, stack = pack(model, "float32"), anatomy(model).stack
    positions = torch.arange(0, 40_000, 7)
    kinds = list(dict.fromkeys(layer.rotary for layer in anatomy(model).layers if layer.rotary is not None))
    rows = weights.rotary(positions)
    for place, kind in enumerate(kinds):
        angles = stack.rotary_emb(torch.zeros(1), positions[None], *([kind] if kind else []))
        for which, expected in enumerate(angles):
            # Both round to float32, torch's vector functions by up to a unit in the last place, 1.2e-7 at one; yarn
            # multiplies them with up to 1.14.
            np.testing.assert_allclose(rows[:, place, which], expected[0].numpy(), rtol=0, atol=1.4e-7)
    assert rows.shape[:3] == (len(positions), len(kinds), 2)
    assert rows.dtype == np.float32


def test_a_model_without_rotary_embeddings_has_none():
    assert pack(tiny_model("gpt2"), "float32").rotary(np.arange(5)).shape == (5, 0, 2, 0)


# -- opening ----------------------------------------------------------------------------------------------------------


def unopened(monkeypatch):
    """From now on no model may be opened."""
    monkeypatch.setattr("clada.models.open.load_model", lambda *_args, **_options: pytest.fail("a model was opened"))


@pytest.mark.parametrize("prompt", ["Hi", "The minister said on Monday that there"])
def test_the_second_time_an_engine_opens_from_the_cache_and_decodes_the_same(prompt, cache, saved, monkeypatch, capfd):
    first = Engine.open(str(saved), plan="none", threads=1)
    first.prefill([[0]])
    wait()
    said = [line for line in capfd.readouterr().err.splitlines(keepends=True) if "compiling the kernels" not in line]
    assert "".join(said) == (
        f"clada: keeping the packed weights of {saved} at float32 (13 MB) in {cache}, for a start in a second from now "
        "on\n"
    )
    unopened(monkeypatch)
    second = Engine.open(str(saved), plan="none", threads=1)
    assert isinstance(first.weights, PackedModel)
    assert not isinstance(second.weights, PackedModel)
    assert second.name == first.name == str(saved)
    for chat in (False, True):
        assert second.encode(prompt, chat=chat) == first.encode(prompt, chat=chat)
    one, two = (list(engine.generate(prompt, 12)) for engine in (first, second))
    assert [step.token_id for step in two] == [step.token_id for step in one]
    assert [step.token for step in two] == [step.token for step in one]
    # float32: sums of a prompt in another order.
    assert [step.surprisal_bits for step in two] == pytest.approx([step.surprisal_bits for step in one], abs=1e-4)
    assert second.measured
    assert capfd.readouterr().err == ""


def test_what_the_engine_refuses_it_refuses_from_the_cache_too(cache, saved, monkeypatch):
    Engine.open(str(saved), plan="none", threads=1).prefill([[0]])
    wait()
    unopened(monkeypatch)
    with pytest.raises(InputError, match="unknown method 'nothing'"):
        Engine.open(str(saved), method="nothing")
    with pytest.raises(InputError, match="no plan for"):
        Engine.open(str(saved))
    with pytest.raises(InputError, match="update window of 0 tokens"):
        Engine.open(str(saved), plan="none", update_window=0)
    engine = Engine.open(str(saved), plan="none", threads=1)
    with pytest.raises(ModelError, match="300 tokens do not fit llama: it was trained for 256 positions; shorten"):
        list(engine.generate("a", 299))
    with pytest.raises(InputError, match=r"token ids outside the vocabulary of 49,152 \(49152\)"):
        engine.encode([49152])


def test_what_prompts_choose_is_not_decoded_from_the_cache(cache, saved):
    """Neurons are chosen by a prompt's statistics, which torch collects."""
    model, _ = load_model(str(saved))
    plan = replace(tiny_plan_of(model, Shares(prompt=0.5), methods=["griffin"]), revision=model_revision(str(saved)))
    for _ in range(2):
        engine = Engine.open(str(saved), method="griffin", plan=plan, threads=1)
        engine.prefill([[0]])
        wait()
        assert isinstance(engine.weights, PackedModel)
    assert not isinstance(Engine.open(str(saved), plan=plan, keep=0.5, method="tt", threads=1).weights, PackedModel)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("about.json", b"{"),
        ("about.json", None),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", None),
        ("weights/tensors.qkv.npy", b"cut"),
        ("weights/tensors.head.npy", "cut in half"),
        ("weights/tensors.head.npy", "zeros"),
        ("weights/arrays.json", b'{"schema": "clada/arrays/1", "arrays": {}}'),
        ("weights/norms.down_norm.npy", None),
        ("screen-none/tensors.screen_basis.npy", b""),
    ],
    ids=str,
)
def test_what_is_damaged_is_packed_again(file, content, cache, saved, capfd):
    Engine.open(str(saved), plan="none", threads=1).prefill([[0]])
    wait()
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    path = folder / file
    before = path.read_bytes()
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        half = len(before) // 2
        path.write_bytes(before[:half] if content == "cut in half" else before[:half] + bytes(len(before) - half))
    capfd.readouterr()
    engine = Engine.open(str(saved), plan="none", threads=1)
    said = capfd.readouterr().err
    engine.prefill([[0]])
    wait()
    # Without its first file a form is one that was never written.
    assert ("is damaged" in said) == ((file, content) != ("about.json", None)), said
    assert isinstance(engine.weights, PackedModel)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    assert not isinstance(Engine.open(str(saved), plan="none", threads=1).weights, PackedModel)


def test_another_version_or_content_is_never_read(cache, saved, tmp_path, monkeypatch, capfd):
    copy = shutil.copytree(saved, tmp_path / "copy")
    Engine.open(str(copy), plan="none", threads=1).prefill([[0]])
    wait()
    assert kept.find_kept(str(copy), "float32", "matrix") is not None
    assert kept.find_kept(str(copy), "bfloat16", "matrix") is None
    assert kept.find_kept(str(copy), "float32", "input") is None
    capfd.readouterr()
    with monkeypatch.context() as changed:
        changed.setattr(kept, "stamp", lambda: "of another version")
        assert kept.find_kept(str(copy), "float32", "matrix") is None
        Engine.open(str(copy), plan="none", threads=1).prefill([[0]])
        wait()
        assert kept.find_kept(str(copy), "float32", "matrix") is not None  # it took the place of the one before
    assert kept.find_kept(str(copy), "float32", "matrix") is None
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 5}))
    assert kept.find_kept(str(copy), "float32", "matrix") is None
    assert "damaged" not in capfd.readouterr().err


def test_the_stamp_is_of_all_sources_that_decide_what_is_packed():
    """What packing calls of this package, by its imports, but what only reads names, files and errors."""
    root = kept.Path(clada.__file__).parent
    listed = {root / source for source in kept.SOURCES}
    assert all(path.is_file() for path in listed)
    seen, left = set(), [root / "cpu" / "pack.py", root / "cpu" / "kept.py"]
    while left:
        path = left.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        modules = re.findall(r"^ *from clada\.([\w.]+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
        left += [root / f"{module.replace('.', '/')}.py" for module in modules]
    without_content = {
        "cpu/kernel_cache.py", "errors.py", "methods/rules.py", "models/assets.py", "models/hooks.py", "models/open.py",
        "models/quiet.py", "system/cache.py", "system/files.py", "system/jsonfile.py", "system/machine.py",
    }  # fmt: skip
    assert {str(path.relative_to(root)) for path in seen - listed} == without_content


def test_where_nothing_can_be_written_everything_works_and_one_line_says_so(cache, saved, monkeypatch, capfd):
    cache.parent.write_text("a file in the way")
    engine = Engine.open(str(saved), plan="none", threads=1)
    engine.prefill([[0]])
    wait()
    said = capfd.readouterr().err
    assert re.fullmatch(rf"clada: every start packs {re.escape(str(saved))} again: .*\n", said)
    assert len(list(engine.generate("Hi", 2))) == 2


def test_no_disk_is_filled(cache, saved, monkeypatch, capfd):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 20_000_000, 20_000_000))
    Engine.open(str(saved), plan="none", threads=1).prefill([[0]])
    wait()
    assert re.fullmatch(
        r"clada: every start packs .* again: .* has no room for 13 MB; free some, or set CLADA_CACHE\n",
        capfd.readouterr().err,
    )
    assert not cache.exists()


def test_a_screen_of_another_basis_joins_the_weights(cache, saved, monkeypatch):
    model, tokenizer = load_model(str(saved))
    rng = np.random.default_rng(0)
    bases = [
        Basis(
            np.linalg.qr(rng.normal(size=(32, 32)))[0][:9].astype(np.float32),
            rng.normal(size=32).astype(np.float32),
        )
        for _ in range(2)
    ]
    keep_and_read(str(saved), model, tokenizer, "int8")
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    written = (folder / "weights" / "arrays.json").stat().st_mtime_ns
    for basis in bases:
        packed, found = keep_and_read(str(saved), model, tokenizer, "int8", basis)
        assert_same(found.weights(basis), packed)
        assert len(found.weights(None).tensors.screen) == 0
    assert (folder / "weights" / "arrays.json").stat().st_mtime_ns == written
    with pytest.raises(kept.NotKeptError):  # one plan's screen is kept at a time
        found.weights(bases[0])


def test_the_forms_used_last_are_kept(cache, saved, monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    model, tokenizer = load_model(str(saved))
    for seconds, dtype in enumerate(("float32", "bfloat16")):
        keep_and_read(str(saved), model, tokenizer, dtype)
        os.utime(kept.find_kept(str(saved), dtype, "matrix").folder / "about.json", (seconds, seconds))
    assert kept.find_kept(str(saved), "float32", "matrix") is not None  # used again
    keep_and_read(str(saved), model, tokenizer, "int8")
    assert {dtype for dtype in PRECISIONS if kept.find_kept(str(saved), dtype, "matrix")} == {"float32", "int8"}


def test_what_transformers_must_compute_is_not_kept(cache, saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "no_repeat_ngram_size": 2}))
    Engine.open(str(copy), plan="none", threads=1).prefill([[0]])
    wait()
    assert not cache.exists()


# -- imports ----------------------------------------------------------------------------------------------------------

# numba imports scipy's own module, to see that it is there, but must import none of its parts.
HEAVY = {"torch", "transformers", "scipy.linalg", "scipy.stats", "pandas", "matplotlib"}


def loaded(code, **environment):
    """Which of these a fresh interpreter has loaded after some code, and what it printed."""
    # What is kept is written in the background, which may say so before or after this.
    script = f"{code}\nimport sys; sys.stderr.write(' '.join(['\\nloaded:', *sorted(sys.modules)]) + '\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    (modules,) = (line for line in done.stderr.splitlines() if line.startswith("loaded:"))
    return HEAVY & set(modules.split()), done.stdout


ON_THE_WAY = (
    "clada.assembly", "clada.cpu.decoder", "clada.cpu.kept", "clada.cpu.kernels.step", "clada.cpu.kernels.team",
    "clada.cpu.weights", "clada.decoding", "clada.engine", "clada.generate", "clada.sampling",
    "clada.speculation.checks", "clada.speculation.drafters", "clada.speculation.pace",
    "clada.methods.coefficients", "clada.methods.plan", "clada.methods.policy", "clada.methods.registry",
    "clada.methods.screen", "clada.models.architectures", "clada.models.open", "clada.models.tokenizer",
    "clada.streaming", "clada.system.commandline", "clada.system.machine", "clada.trace.page",
)  # fmt: skip


def test_what_generate_imports_is_light():
    code = "from clada.cpu.kernels.arguments import box\nbox(0)"  # sets numba up
    assert loaded("\n".join([*(f"import {module}" for module in ON_THE_WAY), code]))[0] == set()


def test_numba_still_multiplies_matrices():
    """Its own check of scipy comes when it compiles a product."""
    product = "numba.njit(lambda a: a @ a)(np.full((2, 2), 3.0))"
    code = f"import clada.cpu.kernel_cache, numba, numpy as np\nprint({product}[0, 1])"
    assert loaded(code) == ({"scipy.linalg"}, "18.0\n")


@pytest.mark.parametrize("options", [[], ["--chat"], ["--temperature", "0.7", "--seed", "1"]], ids=str)
def test_generate_from_the_cache_needs_neither_torch_nor_transformers(options, saved, tmp_path):
    arguments = ["generate", "--model", str(saved), "--plan", "none", "--prompt", "The minister", *options]
    code = f"from clada.cli import main\nassert main({[*arguments, '--max-new-tokens', '3']!r}) == 0"
    # The kernels' cache is the user's: linked into a cache of its own.
    own = tmp_path / "cache"
    own.mkdir()
    for name in ("kernels", "models", "assets"):
        (kept.cache_dir() / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(kept.cache_dir() / name)
    first, one = loaded(code, CLADA_CACHE=str(own))
    assert "torch" in first
    second, two = loaded(code, CLADA_CACHE=str(own))
    assert second == set()
    assert two == one
