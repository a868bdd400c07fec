"""Extraction: shared prefixes give what whole runs give, on every family; shards are checked, redone, refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from tiny_models import CONFIGS, tiny_model, tokens
from tokenizers.pre_tokenizers import Digits, Sequence

from clada.errors import ModelError, StudyError
from clada.models.architectures import FAMILIES, check_length, decoder_layers, down_norms, family_of
from clada.models.hooks import capture_last_activations
from clada.models.open import load_tokenizer, tokenizer_sha256
from clada.surprisal import surprisal_and_entropy_bits
from cladastats.activations import attention
from cladastats.activations.parts import part_path, read_part, read_parts, shard_ids, shards_of
from cladastats.activations.work import RECENT, PrefixSharingRunner, Task
from cladastats.activations.work import sequences_of as extracted
from cladastats.cli import main
from cladastats.extract import extract
from cladastats.placebo import earlier_token
from cladastats.study import Study

LENGTH, PREFIXES = 64, [16, 24, 32]  # the sliding window of the tiny models is 16: prefixes reach and exceed it


def plain_run(model, token_ids):
    """One whole sequence with hooks of its own: activations [layers, neurons] and logits, nothing of ours but names."""
    captured = {}
    names = [
        name
        for name, _ in model.named_modules()
        if re.search(r"\.\d+\.(mlp\.down_proj|fc2|mlp\.c_proj|mlp\.dense_4h_to_h)$", name)
    ]
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, name=name: captured.__setitem__(name, args[0].reshape(len(token_ids), -1)[-1])
        )
        for name in names
    ]
    logits = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return torch.stack([captured[name] for name in names]), logits


def sequences_of(a, b):
    """A, B, B* and the hybrids of a pair by name."""
    hybrids = {str(p): np.concatenate([b[:p], a[p:]]) for p in PREFIXES}
    return {"A": a, "B": b, "matched": np.append(b[:-1], a[-1]), **hybrids}


def test_sequences_of_any_shape_share_their_beginnings():
    """Equal ones, one within another, two that differ in a token: each as if it had run by itself."""
    runner = PrefixSharingRunner(tiny_model("llama", seed=3))
    ids = np.array(tokens(20, 1))
    other = ids.copy()
    other[12] += 1
    some = {"whole": ids, "again": ids.copy(), "part": ids[:9], "short": ids[:2], "other": other}
    found = runner.measure(some)
    assert runner.token_forwards == 20 + 8
    for name, sequence in some.items():
        alone = runner.measure({name: sequence})[name]
        # float32 sums in another order
        assert np.abs(alone.activations - found[name].activations).max() <= 1e-4 * np.abs(alone.activations).max()
        np.testing.assert_allclose(alone.recent_bits, found[name].recent_bits, atol=1e-3)
    assert np.isnan(found["short"].previous_surprisal_bits)


@pytest.mark.parametrize("left", [1, RECENT - 1, RECENT, RECENT + 1, RECENT + 2])
def test_recent_surprisal_is_whole_wherever_sequences_part(left):
    """Logits are kept only where a sequence ends soon: some part there, and again a token before their ends."""
    runner = PrefixSharingRunner(tiny_model("llama", seed=3))
    ids = np.array(tokens(30, 1))
    parted, late = ids.copy(), ids.copy()
    parted[-left] = (ids[-left] + 1) % 90
    late[-1] = (ids[-1] + 2) % 90
    some = {"whole": ids, "parted": parted, "late": late}
    found = runner.measure(some)
    for name, sequence in some.items():
        with torch.inference_mode():
            logits = runner.model(torch.tensor(sequence[None])).logits[0]
        surprisal, entropy = surprisal_and_entropy_bits(logits[:-1], torch.tensor(sequence[1:]))
        # float32 sums in another order
        np.testing.assert_allclose(found[name].recent_bits, surprisal[-RECENT:], atol=1e-3)
        assert found[name].entropy_bits == pytest.approx(float(entropy[-1]), abs=1e-3)


def test_attention_is_in_blocks_while_measuring_and_the_models_own_afterwards(monkeypatch):
    model = tiny_model("gemma3_text", seed=3)
    before, seen = model.config._attn_implementation, []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, *others, **options):
        seen.append((query.shape[2], key.shape[2]))
        return kernel(query, key, *others, **options)

    monkeypatch.setattr(attention, "BLOCK", 32)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    PrefixSharingRunner(model).measure({"a": np.array(tokens(80))})
    windows = [kind == "sliding_attention" for kind in model.config.layer_types]
    expected = []
    for windowed in windows:  # a window of 16: 15 keys before a block's own
        expected += [(32, 32), (32, 47), (16, 31)] if windowed else [(32, 32), (32, 64), (16, 80)]
    assert seen == expected
    assert model.config._attn_implementation == before


def test_every_family_of_the_table_has_a_tiny_model():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("block", [attention.BLOCK, 7])  # one block; many, that divide neither length nor window
@pytest.mark.parametrize("family", CONFIGS)
def test_shared_prefixes_equal_whole_runs(family, block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    model = tiny_model(family, seed=7)
    a, b = (np.array(tokens(LENGTH + 1, seed)) for seed in (1, 2))
    runner = PrefixSharingRunner(model)
    whole = sequences_of(a, b)
    found = runner.measure(whole)
    assert set(found) == set(whole)
    for key, ids in whole.items():
        activations, logits = plain_run(model, ids.tolist())
        # The same float32 sums in another order; 1e-4 relative to the size of a layer's activations.
        for layer, expected in zip(found[key].activations, activations.numpy(), strict=True):
            assert np.abs(layer - expected).max() <= 1e-4 * np.abs(expected).max()
        log_p = torch.log_softmax(logits[-2].double(), -1) / np.log(2)
        assert found[key].surprisal_bits == pytest.approx(-float(log_p[ids[-1]]), abs=1e-3)  # bits; the same sums
        assert found[key].entropy_bits == pytest.approx(-float((log_p.exp2() * log_p).nan_to_num().sum()), abs=1e-3)
        assert found[key].target_id == ids[-1]
        before = -torch.log_softmax(logits[-3].double(), -1)[ids[-2]] / np.log(2)
        assert found[key].previous_surprisal_bits == pytest.approx(float(before), abs=1e-3)
        alone = runner.measure({"alone": ids})["alone"]
        assert np.abs(alone.activations - found[key].activations).max() <= 1e-4 * np.abs(alone.activations).max()


@pytest.mark.parametrize("family", CONFIGS)
def test_hooks_see_the_neurons_that_the_down_projection_reads(family):
    model = tiny_model(family)
    seen = {}
    path = FAMILIES[family].mlp[2]
    handle = (
        decoder_layers(model)[1]
        .get_submodule(path)
        .register_forward_hook(lambda _m, _args, output: seen.update(output=output.reshape(-1, output.shape[-1])[-1]))
    )
    with capture_last_activations(model) as captured:
        model(torch.tensor([tokens(20)]))
    handle.remove()
    module = decoder_layers(model)[1].get_submodule(path)
    assert [len(layer) for layer in captured] == [80] * 3
    torch.testing.assert_close(module(captured[1]), seen["output"])
    # ||w_down[:, i]||: what a unit activation of neuron i adds, whatever way round the weight is kept.
    zero = module(torch.zeros(80))
    added = torch.stack([(module(unit) - zero).norm() for unit in torch.eye(80)])
    torch.testing.assert_close(down_norms(model)[1], added, rtol=1e-4, atol=1e-5)  # float32 difference of like numbers
    model(torch.tensor([tokens(5, seed=3)]))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_token_forwards_stay_within_the_promised_share():
    runner = PrefixSharingRunner(tiny_model("llama"))
    runner.measure(sequences_of(np.array(tokens(LENGTH + 1, 1)), np.array(tokens(LENGTH + 1, 2))))
    assert runner.token_forwards <= 0.45 * 9 * (LENGTH + 1)
    assert runner.token_forwards <= 0.80 * 5 * (LENGTH + 1)


def test_an_unknown_family_and_a_length_beyond_the_positions_are_refused():
    config = tiny_model("opt", max_position_embeddings=64).config
    with pytest.raises(ModelError, match=r"65 tokens do not fit opt: its position table has 64 positions; shorten"):
        check_length(config, 65, "shorten")
    check_length(config, 64, "shorten")
    config.model_type = "mamba"
    with pytest.raises(ModelError, match=r"model family 'mamba' is not supported; supported are: LLaMA.*GPT-2"):
        family_of(config)


# -- a real study -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy_of(small_study, tmp_path):
    """A copy of the shared study that a test may damage."""
    shutil.copytree(small_study.folder, tmp_path / "study")
    return Study(tmp_path / "study")


def parts(study):
    return sorted((study.folder / "activations").glob("part-*.safetensors"))


def contents(study):
    return {path.name: path.read_bytes() for path in parts(study)}


def test_finished_work_is_not_done_again(copy_of, monkeypatch):
    monkeypatch.setattr("cladastats.activations.work.load_model", lambda *_a, **_k: pytest.fail("the model was opened"))
    extract(copy_of)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "not a part"])
def test_a_damaged_part_is_redone_bit_for_bit(tiny_copy, damage, capsys):
    before = contents(tiny_copy)
    path = parts(tiny_copy)[1]
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-1000] ^= 1
    path.write_bytes({"truncated": content[:-100], "altered": content, "missing": b"", "not a part": b"{}"}[damage])
    if damage == "missing":
        path.unlink()
    else:
        with pytest.raises(
            StudyError, match=r"part-00001.safetensors is truncated or altered; run 'cladastats extract"
        ):
            read_part(path, tiny_copy.config.identity(), shard_ids(shards_of(tiny_copy.corpus)[1]))
    extract(tiny_copy)
    said = capsys.readouterr().err
    assert ("part-00001.safetensors is truncated or altered; it is done again" in said) == (damage != "missing")
    assert contents(tiny_copy) == before


def test_a_part_in_the_place_of_another_is_redone(tiny_copy, capsys):
    before = contents(tiny_copy)
    shutil.copy(parts(tiny_copy)[1], parts(tiny_copy)[0])
    (tiny_copy.folder / "activations" / "down_norms.safetensors").write_bytes(b"cut")
    with pytest.raises(StudyError, match="holds another shard"):
        next(read_parts(tiny_copy))
    extract(tiny_copy)
    assert "part-00000.safetensors holds another shard; it is done again" in capsys.readouterr().err
    assert contents(tiny_copy) == before
    assert safetensors.numpy.load_file(tiny_copy.folder / "activations" / "down_norms.safetensors")["down_norms"].all()


def test_a_part_of_another_study_is_refused(copy_of, monkeypatch):
    value = json.loads((copy_of.folder / "study.json").read_text())
    (copy_of.folder / "study.json").write_text(json.dumps({**value, "revision": "sha256:other"}))
    with pytest.raises(StudyError, match="belongs to a study of another model or corpus"):
        extract(Study(copy_of.folder))
    for path in parts(copy_of):
        path.unlink()
    with pytest.raises(StudyError, match="is of smollm2-135m at sha256:other"):
        extract(Study(copy_of.folder))


def test_another_tokenizer_than_the_studys_is_refused(copy_of, monkeypatch, capsys):
    """The same weights whose text would be cut into other tokens: digits one by one, say, as a conversion changed."""
    study, command = copy_of, ["--study", str(copy_of.folder)]

    def other(name, revision=None):
        tokenizer = load_tokenizer(name, revision)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(), tokenizer.backend_tokenizer.pre_tokenizer])
        return tokenizer

    for module in ("clada.models.open", "cladastats.sequences.tokenizer"):
        monkeypatch.setattr(f"{module}.load_tokenizer", other)
    extract(study)  # it is done: no tokenizer is opened
    parts(study)[0].unlink()
    said = (
        f"the tokenizer of smollm2-135m is not the one the study was made with (sha256 "
        f"{tokenizer_sha256(other('smollm2-135m'))[:20]}, not {study.config.tokenizer_sha256[:20]}): its tokens mean "
        "something else; use the versions of packages that study.json names, or make a new study with another --study"
    )
    for stage in ("extract", "controls", "placebo"):
        capsys.readouterr()
        assert main([stage, *command]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"cladastats: {said}"
    with pytest.raises(StudyError, match="is not the one the study was made with"):
        earlier_token(study)


def test_an_altered_corpus_is_refused(copy_of):
    table = copy_of.corpus
    table.at[0, "token_ids"] = table.at[0, "token_ids"][::-1]
    table.to_parquet(copy_of.folder / "corpus.parquet")
    with pytest.raises(StudyError, match=r"corpus.parquet was altered"):
        extract(copy_of)


def test_an_interrupted_run_loses_only_the_shard_in_flight(tiny_copy, monkeypatch):
    before = contents(tiny_copy)
    for path in parts(tiny_copy):
        path.unlink()
    (tiny_copy.folder / "activations" / "index.parquet").unlink()
    measure, calls = PrefixSharingRunner.measure, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 6:  # in the second shard of four blocks
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(PrefixSharingRunner, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_copy)
    assert [path.name for path in parts(tiny_copy)] == ["part-00000.safetensors"]
    assert not list((tiny_copy.folder / "activations").glob("*.tmp"))
    extract(tiny_copy)
    assert len(calls) == 6 + 8  # the second and third shard, not the first
    assert contents(tiny_copy) == before


def test_half_precision_storage_is_recorded_and_overflow_found(tiny_copy, monkeypatch):
    value = json.loads((tiny_copy.folder / "study.json").read_text())
    (tiny_copy.folder / "study.json").write_text(json.dumps({**value, "storage_dtype": "float16"}))
    ids = shard_ids(shards_of(tiny_copy.corpus)[0])
    full = read_part(part_path(tiny_copy, 0), tiny_copy.config.identity(), ids).tensors["activations"]
    for path in parts(tiny_copy):
        path.unlink()
    study = Study(tiny_copy.folder)
    extract(study)
    half = read_part(part_path(study, 0), study.config.identity(), ids).tensors["activations"]
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))
    measure = PrefixSharingRunner.measure

    def huge(self, *args):
        found = measure(self, *args)
        return {k: dataclasses.replace(m, activations=m.activations * 1e6) for k, m in found.items()}

    monkeypatch.setattr(PrefixSharingRunner, "measure", huge)
    parts(study)[0].unlink()
    with pytest.raises(StudyError, match="does not fit float16; make the study with --storage-dtype float32"):
        extract(study)


def test_a_study_is_repeated_from_its_description_alone(tiny_study, tmp_path, capsys):
    (tmp_path / "study.json").write_bytes((tiny_study.folder / "study.json").read_bytes())
    command = ["run", "--from", str(tmp_path / "study.json")]
    again = tmp_path / "again"
    assert main([*command, "--study", str(again)]) == 0
    for name in ("corpus.parquet", "panel-cka.parquet", "panel-cosine.parquet"):
        assert (again / name).read_bytes() == (tiny_study.folder / name).read_bytes()
    assert contents(Study(again)) == contents(tiny_study)
    assert main([*command, "--study", str(again)]) == 0  # it is there
    value = json.loads((tmp_path / "study.json").read_text())
    for change, options, message in (
        ({}, [], "--from needs --study"),
        ({}, ["--study", str(again), "--pairs", "3"], "leave the other settings out"),
        ({"corpus_sha256": "0" * 64}, ["--study", str(again)], "is another study than that of"),
        ({"source_sha256": "0" * 64}, ["--study", str(tmp_path / "b")], "the source news is not what it was"),
        (
            {"revision": "sha256:0"},
            ["--study", str(tmp_path / "b")],
            f"the model {tiny_study.config.model} is not what it was",
        ),
        ({"corpus": {"made_of": "x"}}, ["--study", str(tmp_path / "b")], "made from another study"),
    ):
        (tmp_path / "study.json").write_text(json.dumps({**value, **change}))
        capsys.readouterr()
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert not (tmp_path / "b").exists()


def test_the_number_of_threads_changes_no_more_than_the_last_digits(small_study):
    """Sums in another order: to 1e-5 of a layer's largest activation, and of the surprisal; with the same, no bit."""
    blocks = extracted(shards_of(small_study.corpus)[0])
    found, before = {}, torch.get_num_threads()
    for threads in (1, 2, 1):
        task = Task(
            *(getattr(small_study.config, name) for name in ("model", "revision", "dtype", "storage_dtype")),
            threads,
            64,
        )
        part, _ = task.worker().part(blocks)
        if threads in found:
            assert part.checksum("") == found[threads].checksum("")
        found[threads] = part
    torch.set_num_threads(before)
    one, two = (found[threads].tensors for threads in (1, 2))
    largest = np.abs(one["activations"]).max(2)
    assert (np.abs(one["activations"] - two["activations"]).max(2) <= 1e-5 * largest).all()
    np.testing.assert_allclose(one["surprisal_bits"], two["surprisal_bits"], rtol=1e-5, atol=1e-5)
