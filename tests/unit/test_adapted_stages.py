"""Stages whose model diffuses by an adapter, from the conversion to the text that is decoded."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from diffgr2.config import AdapterConfig, CftConfig, ConvertConfig, OpdConfig, RlConfig, SftConfig
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import CheckpointError, ConfigError
from diffgr2.export.writing import export
from diffgr2.model.adapter import CONFIG, FOLDER, UNMERGED, WEIGHTS, Adapter, adapter_of
from diffgr2.model.backends import open_backend, write_graphs
from diffgr2.model.contract import contract_of
from diffgr2.model.conversion import convert
from diffgr2.model.gated import adapter_in, attach
from diffgr2.model.load import load, open_model
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.rerank.bundle import GRAPHS
from diffgr2.stages.cft import CftTask
from diffgr2.stages.common import give_lora, train_stage, write_model
from diffgr2.train import checkpoint, dist
from support import tiny_stages
from support.adapted import drawn
from support.battery import check_resume_from_every_step, run
from support.exported import model_directory
from support.tiny_corpus import SEED, corpus

ADAPTER = AdapterConfig(rank=8, alpha=16.0)
CONVERT = ConvertConfig(block_size=tiny_stages.BLOCK, origin="document", adapter=ADAPTER)


def bytes_of(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def context(folder: Path, name: str) -> StageContext:
    for part in ("out", "work"):
        (folder / name / part).mkdir(parents=True)
    where = (folder / name / "out", folder / name / "work")
    return StageContext(name, corpus().recipe, {}, *where, Progress(io.StringIO()))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    tiny_stages.vocabulary().save(folder / "vocabulary")
    write_model(tiny_stages.model("ar"), folder / "vocabulary", folder / "rl")
    return folder / "rl"


@pytest.fixture(scope="module")
def naive(teacher) -> Path:
    convert(teacher, teacher.parent / "convert", CONVERT, SEED)
    return teacher.parent / "convert"


@pytest.fixture(scope="module")
def student(naive) -> Path:
    """After CFT."""
    contract, ctx = contract_of(naive), context(naive.parent, "cft")
    assert contract is not None
    config = tiny_stages.config_of(CftConfig, steps=60, rows=16, lr=2e-2)
    task = CftTask(corpus(), tiny_stages.both(), contract, config, SEED)
    train_stage(ctx, task, open_model(naive), config, naive)
    return ctx.out


def requests() -> list[DecodeRequest]:
    """Every list of the corpus, with reasoning and without."""
    made, outputs = [], tiny_stages.both()
    for n in range(len(outputs)):
        how: dict[str, Any] = {"reasoning": not outputs.direct_N[n], "answer": outputs.answer(n)}
        grammar = corpus().template.grammar(outputs.request(corpus(), n), **how)
        made.append(DecodeRequest(outputs.prompt(corpus(), n), grammar, (n,)))
    return made


def written(directory: Path, backend: str, decoder: str, **given: Any) -> list[Any]:
    contract, how = contract_of(directory), "raw" if decoder == "block" else decoder
    settings = corpus().settings(contract, how, rule="grammar", **given)
    return decode(open_backend(directory, backend), requests(), settings)


def texts(directory: Path, backend: str, decoder: str, **given: Any) -> list[list[int]]:
    return [one.tokens_T.tolist() for one in written(directory, backend, decoder, **given)]


# --------------------------------------------------------------------------- what training leaves


def test_conversion_writes_the_teachers_file_and_an_adapter_that_adds_nothing(teacher, naive):
    assert bytes_of(naive) == bytes_of(teacher)
    contract, adapter = contract_of(naive), adapter_of(naive)
    assert contract is not None
    assert adapter is not None
    assert (contract.adapter, adapter.mask_id) == ("masks", contract.mask_token_id)
    ids_BT = torch.tensor([[5, adapter.mask_id, 7, adapter.mask_id]])
    with torch.no_grad():
        found, wanted = (open_model(where)(ids_BT).logits for where in (naive, teacher))
    assert torch.equal(found, wanted)


def test_training_changes_the_adapter_and_no_other_byte(teacher, naive, student):
    assert bytes_of(student) == bytes_of(teacher)
    assert (student / "config.json").read_bytes() == (naive / "config.json").read_bytes()
    before, after = (load_file(where / FOLDER / WEIGHTS) for where in (naive, student))
    assert before.keys() == after.keys()
    assert all(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_every_list_is_verified_as_the_teacher_writes_it(teacher, student, backend):
    wanted = texts(teacher, backend, "ar")
    assert texts(student, backend, "ar") == wanted
    verified = written(student, backend, "verify")
    assert [one.tokens_T.tolist() for one in verified] == wanted
    forwards = sum(one.nfe for one in verified)
    assert forwards < sum(one.nfe for one in written(teacher, backend, "ar"))


def test_it_learns_to_denoise(naive, student):
    """With the mask's row of the embedding and the head as they were."""
    contract = contract_of(student)
    assert contract is not None
    config = tiny_stages.config_of(CftConfig, rows=48)
    task = CftTask(corpus(), tiny_stages.both(), contract, config, SEED + 1)

    def share(directory: Path) -> float:
        """Of masked tokens that are predicted right."""
        model, right, count = open_model(directory), 0.0, 0.0
        for micro in task.micros(1, model):
            found = task.loss(model, micro).metrics
            for part in ("reasoning", "answer"):
                right += float(found[f"{part}/accuracy"][0])
                count += float(found[f"{part}/accuracy"][1])
        return right / count

    assert share(student) > 1.5 * share(naive)


def test_a_bundles_graphs_hold_the_adapter(student, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(student, copy)
    wanted = texts(copy, "onnx", "block")
    write_graphs(copy)
    assert all((copy / name).is_file() for name in GRAPHS.values())
    assert texts(copy, "onnx", "block") == wanted
    rough = texts(copy, "onnx-int8", "block")
    assert np.mean([one == two for one, two in zip(rough, wanted, strict=True)]) > 0.5


# ------------------------------------------------------------------------------ OPD, RL, resuming


def gated(kind: str):
    """A factory for the battery: a gated model of the teacher's weights, and a stage's task."""

    def make():
        task, config = {
            "cft": lambda: tiny_stages.cft_task(steps=2, rows=2, micro_rows=2),
            "opd": lambda: tiny_stages.opd_task(frozen(), steps=4, micro_rows=2),
            "block_rl": lambda: tiny_stages.block_rl_task(steps=4, micro_rows=4),
        }[kind]()
        contract = tiny_stages.contract_of(adapter="masks")
        if hasattr(task, "contract"):
            task.contract = contract
        return task, with_adapter(tiny_stages.model("block")), config

    return make


def frozen() -> Any:
    return tiny_stages.model("ar").eval().requires_grad_(False)


def with_adapter(net: Any) -> Any:
    adapter = Adapter.of(ADAPTER, tiny_stages.vocabulary().mask_id)
    # B is not zero here: what rolls out and what is scored have to agree about it.
    return attach(net, adapter, {n: a / 4 for n, a in drawn(net, adapter).items()})


@pytest.mark.parametrize("kind", ["cft", "opd", "block_rl"])
def test_a_resumed_run_is_an_uninterrupted_one_and_the_base_stays(kind, tmp_path):
    assert check_resume_from_every_step(gated(kind), tmp_path) > 0
    _, model, _ = gated(kind)()
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    stored = {*load_file(saved / "model.safetensors")}
    assert stored == {name for name in model.state_dict() if ".lora_" in name}
    assert any(".lora_A" in name for name in stored)


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    run(gated("cft"), tmp_path)

    def other():
        task, model, config = gated("cft")()
        with torch.no_grad():
            model.model.norm.weight[0] += 1
        return task, model, config

    with pytest.raises(CheckpointError, match=r"belongs to another run.*frozen"):
        run(other, tmp_path)


def test_gated_cft_has_no_ar_loss():
    task, _, _ = gated("cft")()
    assert not any((micro.half_N == 1).any() for micro in task.micros(1, tiny_stages.model()))
    full, config = tiny_stages.cft_task(steps=4)
    assert any((micro.half_N == 1).any() for micro in full.micros(1, tiny_stages.model()))
    assert config.ar_weight > 0


# ------------------------------------------------------------------------- LoRA of the AR stages


def test_a_stage_with_lora_writes_plain_weights(teacher, tmp_path):
    config = tiny_stages.config_of(SftConfig, steps=3, lora={"rank": 2, "targets": ["q_proj"]})
    task, _ = tiny_stages.sft_task(steps=3)
    ctx = context(tmp_path, "sft")
    train_stage(ctx, task, open_model(teacher), config, teacher)
    before, after = (load_file(where / "model.safetensors") for where in (teacher, ctx.out))
    assert not (ctx.out / FOLDER).exists()
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}
    for name in changed:
        assert np.linalg.matrix_rank(after[name] - before[name], tol=1e-5) <= 2
    assert adapter_in(open_model(ctx.out)) is None


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_rl_with_lora_replays_its_own_rollouts(backend, tmp_path, monkeypatch):
    """The task itself refuses a replay that differs from the rollout."""
    monkeypatch.setenv("DIFFGR2_BACKEND", backend)

    def make():
        task, config = tiny_stages.rl_task(steps=2, micro_rows=4)
        net = tiny_stages.model("ar")
        give_lora(net, ADAPTER, "rl", SEED)
        for name, weight in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        return task, net, config

    torch.manual_seed(0)
    assert len(run(make, tmp_path).lines) == 2


def test_lora_on_top_of_a_gated_adapter_is_refused():
    net = with_adapter(tiny_stages.model())
    with pytest.raises(ConfigError, match=r"opd.lora: this model trains the adapter of convert"):
        give_lora(net, ADAPTER, "opd", SEED)
    for section in (SftConfig, RlConfig, OpdConfig):
        assert "lora" not in section().model_dump()  # runs of before keep standing


# ---------------------------------------------------------------------------------------- refusals


def config_with(**changes: Any):
    def change(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(values))

    return change


def tensors_with(change):
    def write(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return write


def narrow(tensors) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][:, :-1].copy()


def spoilt(tensors) -> None:
    tensors[sorted(tensors)[0]][0, 0] = np.nan


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


BROKEN = {
    "is missing": lambda folder: (folder / WEIGHTS).unlink(),
    "file is missing": lambda folder: (folder / CONFIG).unlink(),
    "is missing ": tensors_with(lambda tensors: tensors.pop(sorted(tensors)[0])),
    "is unknown": tensors_with(lambda tensors: tensors.update(more=np.zeros(1, "f4"))),
    "by the model's sizes": tensors_with(narrow),
    "not finite": tensors_with(spoilt),
    "ends within tensor": lambda folder: cut(folder / WEIGHTS),
    "r: expected": config_with(r=0),
    "by the model's sizes ": config_with(r=3),
    "lora_alpha: expected": config_with(lora_alpha="much"),
    "target_modules: expected": config_with(target_modules=["lm_head"]),
    "use_dora True is not supported": config_with(use_dora=True),
    "not the configuration of a LoRA": config_with(peft_type="IA3"),
    "does not say that it is active at masks only": config_with(diffgr2=None),
    "it is active at token 3": config_with(diffgr2={"active_at": "masks", "mask_token_id": 3}),
}


@pytest.mark.parametrize("told", BROKEN)
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_half_or_strange_adapter_is_refused_in_one_line(naive, tmp_path, told, backend):
    copy = tmp_path / "model"
    shutil.copytree(naive, copy)
    BROKEN[told](copy / FOLDER)
    with pytest.raises(CheckpointError, match=told.strip()) as raised:
        open_backend(copy, backend)
    assert "\n" not in str(raised.value)
    assert str(copy) in str(raised.value)


def test_an_adapter_that_no_contract_knows_is_refused(naive, teacher, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(teacher, copy)
    shutil.copytree(naive / FOLDER, copy / FOLDER)
    for backend in ("onnx", "torch"):
        with pytest.raises(CheckpointError, match="does not say that it is to be used"):
            open_backend(copy, backend)


def test_exports_hold_the_teacher_or_say_why_not(tmp_path):
    source, twin = tmp_path / "rl", tmp_path / "convert"
    model_directory(source, section=None)
    how = ConvertConfig(block_size=4, clean_attention="block_causal", adapter=ADAPTER)
    convert(source, twin, how)
    export(twin, tmp_path / "out", "qwen3")
    assert bytes_of(tmp_path / "out") == bytes_of(source)
    assert not (tmp_path / "out" / FOLDER).exists()
    for name in ("hf", "sdar"):
        with pytest.raises(ConfigError) as raised:
            export(twin, tmp_path / name, name)
        assert UNMERGED in str(raised.value)
        assert not (tmp_path / name).exists()


# ----------------------------------------------------------------------------------- PEFT's reading


def test_peft_reads_the_files_and_computes_the_same_at_masks(student, tmp_path):
    peft = pytest.importorskip("peft")
    model, mask_id = open_model(student), tiny_stages.vocabulary().mask_id
    other = peft.PeftModel.from_pretrained(load(student), student / FOLDER)
    ids_BT = torch.full((1, 9), mask_id)
    with torch.no_grad():
        torch.testing.assert_close(model(ids_BT).logits, other(ids_BT).logits, atol=1e-5, rtol=0)
        plain = load(student)(ids_BT).logits
    assert not torch.allclose(model(ids_BT).logits, plain, atol=1e-2)
    other.save_pretrained(tmp_path)
    mine, theirs = load_file(student / FOLDER / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_full_training_keeps_all_weights_in_its_checkpoints(tmp_path):
    run(tiny_stages.make_short_cft, tmp_path)
    saved = sorted((tmp_path / "checkpoints").iterdir())[-1]
    _, model, config = tiny_stages.make_short_cft()
    assert {*load_file(saved / "model.safetensors")} == {*dist.unique_tensors(model)}
    assert "frozen" not in checkpoint.identity("cft", SEED, config, model)["model"]
