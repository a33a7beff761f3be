"""No file that minialpaca reads can make it run anything: asked of its source, and tried with a weapon in every place."""

import ast
import contextlib
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from crews import saved
from running import in_process, refused
from test_house import FILES, name_of

import finetune
import train
from minialpaca import generate, run
from minialpaca.errors import UserError
from minialpaca.storage import checkpoint
from minialpaca.tokenizer import Tokenizer

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "yaml", "ruamel", "pty", "code",
           "codeop", "runpy", "imp", "ctypes", "multiprocessing"}
NAMES = {"eval", "exec", "compile", "__import__", "breakpoint"}
CALLS = {"os.system", "os.popen", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
         "importlib.import_module", "pd.read_pickle", "pandas.read_pickle", "torch.serialization.load", "torch.serialization.add_safe_globals"}
# torch.compile is none of them: it is given functions of ours, and nothing that a file holds.
STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pickle.", "marshal.", "shelve.", "subprocess.", "yaml.", "importlib.")


def faults(source):
    """What of a source could run code that a file brings, as (line, what)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        named = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                 [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)] if isinstance(node, ast.ImportFrom) else [])
        found += [(node.lineno, n) for n in named if n.partition(".")[0] in MODULES or n in CALLS or n.startswith(STARTS)
                  or n in ("torch.load", "numpy.load")]
        if isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):  # also handed on and not called; a name of ours that is set is none
            found.append((node.lineno, node.id))
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in CALLS or text.startswith(STARTS) or text.startswith("builtins.") or node.attr in ("__builtins__", "__subclasses__"):
                found.append((node.lineno, text))
        if isinstance(node, ast.Call):
            found += [(node.lineno, w) for w in faulty_call(node)]
    return found + loaders_handed_on(source)


def faulty_call(node):
    called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called == "torch.load" and (given.get("weights_only") != "True" or "pickle_module" in given or None in given):
        return ["torch.load without weights_only=True"]
    if called in ("np.load", "numpy.load") and (given.get("allow_pickle", "False") != "False" or len(node.args) > 2 or None in given):
        return ["numpy.load with allow_pickle"]
    return ["a shell"] if given.get("shell", "False") != "False" else []


def loaders_handed_on(source):
    """`f = torch.load` would be called under another name."""
    tree = ast.parse(source)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return [(n.lineno, "a loader handed on") for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in called
            and ast.unparse(n) in ("torch.load", "np.load", "numpy.load")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_here_can_run_code_out_of_a_file(path):
    assert not faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", [
    "import pickle", "import os, marshal", "from shelve import open", "import yaml", "from subprocess import run", "from os import system",
    "from torch import load", "from numpy import load", "eval(x)", "map(exec, x)", "compile(x, '', 'exec')", "__import__('os')",
    "os.system(x)", "os.popen(x)", "os.execv(x, y)", "torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=w)",
    "torch.load(x, **kw)", "torch.load(x, weights_only=True, pickle_module=p)", "f = torch.load", "np.load(x, allow_pickle=True)",
    "np.load(x, None, True)", "numpy.load(x, allow_pickle=a)", "torch.jit.load(x)", "torch.hub.load(x)", "run(x, shell=True)",
    "builtins.eval(x)", "importlib.import_module(x)", "torch.serialization.add_safe_globals([x])",
])
def test_the_search_finds_what_it_is_for(source):
    assert faults(source)


def test_a_field_that_is_called_as_a_builtin_is_runs_nothing():
    assert not faults("class A:\n    compile: str = 'auto'\n") and faults("run = compile")


@pytest.mark.parametrize("source", ["torch.load(x, weights_only=True)", "re.compile(x)", "np.load(x)", "np.load(x, allow_pickle=False)",
                                    "model.eval()", "json.loads(x)", "np.frombuffer(x)"])
def test_the_search_lets_go_what_is_harmless(source):
    assert not faults(source)


# ── a weapon in every place ──────────────────────────────────────────────────────────────────────


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plain(thing, path):
    path.write_bytes(pickle.dumps(thing))


DUMPS = {"torch.save": torch.save, "pickle": plain,
         "torch.save, the old form": lambda thing, path: torch.save(thing, path, _use_new_zipfile_serialization=False)}
WRONG = "ignore:Detected pickle protocol"


def planted(dump, weapon, proof):
    """The attacker knows how to count: the manifest beside it agrees."""
    dump({"w": Malice(proof)}, weapon)
    listed = weapon.parent / "manifest.json"
    if listed.is_file():
        manifest = json.loads(listed.read_text(encoding="utf-8"))
        manifest["files"][weapon.name] = checkpoint._facts(weapon)
        listed.write_text(json.dumps(manifest), encoding="utf-8")


def fires(weapon, proof):
    """Unpickled by whoever trusts it, as here alone and of a file written above, it makes the folder."""
    assert not proof.exists()
    packed = zipfile.is_zipfile(weapon)
    with contextlib.ExitStack() as stack, contextlib.suppress(EOFError):
        archive = stack.enter_context(zipfile.ZipFile(weapon)) if packed else None
        name = next(n for n in archive.namelist() if n.endswith("data.pkl")) if packed else None
        file = stack.enter_context(archive.open(name) if packed else open(weapon, "rb"))
        while True:  # torch's old form is several pickles in a row
            pickle.load(file)
    assert proof.exists()


@pytest.mark.filterwarnings(WRONG)
@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt"])
def test_in_a_checkpoint(pretrain_command, pretrained, tmp_path, name, dump):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(pretrained, folder)
    weapon = checkpoint.find(folder) / name
    planted(dump, weapon, proof)
    refused(in_process(train.main, [*pretrain_command, f"run.dir={folder}"]), f"{name}: cannot be loaded")
    if name == "model.pt":
        with pytest.raises(UserError, match="model.pt: cannot be loaded"):
            run.load(folder, "last")
    fires(weapon, proof)


@pytest.mark.filterwarnings(WRONG)
@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
@pytest.mark.parametrize("name", ["model-0-of-2.pt", "model-1-of-2.pt"])
def test_in_a_part_of_a_checkpoint(tmp_path, name, dump):
    proof = tmp_path / "executed"
    assert saved(tmp_path / "run", 1) == [None, None]
    place = checkpoint.find(tmp_path / "run")
    planted(dump, place / name, proof)
    checkpoint.verify(place)
    with pytest.raises(UserError, match=f"{name}: cannot be loaded"):
        checkpoint.read_tensors(place, "model")
    fires(place / name, proof)


@pytest.mark.filterwarnings(WRONG)
@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_in_an_adapter(finetune_command, tmp_path, dump):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    assert in_process(finetune.main, [*finetune_command, f"run.dir={folder}", "adapter.method=lora", "train.steps=1"]).code == 0
    weapon = checkpoint.find(folder, "last") / "model.pt"
    planted(dump, weapon, proof)
    base, _ = run.load(run.base_folder(run.settings_of(folder)))
    for ask in (lambda: run.load_adapter(folder, base, "last"), lambda: run.load(folder, "last")):
        with pytest.raises(UserError, match="model.pt: cannot be loaded"):
            ask()
    fires(weapon, proof)


@pytest.mark.parametrize("name", ["tokens/train.bin", "tokens/val.bin", "tokenizer.model", "config.toml", "checkpoints/last"])
def test_in_a_file_beside_the_checkpoints(pretrain_command, pretrained, tmp_path, name):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(pretrained, folder)
    plain(Malice(proof), folder / name)
    refused(in_process(train.main, [*pretrain_command, f"run.dir={folder}"]), name.rpartition("/")[2])
    fires(folder / name, proof)


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_in_a_checkpoints_plain_file(pretrain_command, pretrained, tmp_path, name):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(pretrained, folder)
    plain(Malice(proof), checkpoint.find(folder) / name)
    refused(in_process(train.main, [*pretrain_command, f"run.dir={folder}"]), name)
    assert not proof.exists()


def test_in_a_tokenizer_that_is_named(tmp_path):
    plain(Malice(tmp_path / "executed"), tmp_path / "t.model")
    with pytest.raises(UserError, match="t.model"):
        Tokenizer.load(tmp_path / "t.model")
    fires(tmp_path / "t.model", tmp_path / "executed")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz"])
def test_in_the_data(pretrain_command, tmp_path, suffix):
    weapon = tmp_path / f"data{suffix}"
    plain(Malice(tmp_path / "executed"), weapon)
    refused(in_process(train.main, [*pretrain_command, f"run.dir={tmp_path / 'run'}", f"data.source={weapon}"]), weapon.name)
    fires(weapon, tmp_path / "executed")


def test_in_a_run_that_is_asked(pretrained, tmp_path, monkeypatch):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(pretrained, folder)
    planted(torch.save, checkpoint.find(folder, "best") / "model.pt", proof)
    monkeypatch.setattr("sys.argv", ["generate", str(folder), "A prompt"])
    refused(in_process(generate.main), "model.pt: cannot be loaded")
    assert not proof.exists()
