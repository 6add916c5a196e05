"""Tests of the house itself: who imports whom, how fast it opens, how large its rooms are."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "openvocab").rglob("*.py"))


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, **options)


def test_imports_point_down_only():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize(
    "program",
    [
        "import openvocab",
        "import openvocab.cli, openvocab.config, openvocab.system, openvocab.systems; openvocab.systems.names()",
        "from openvocab.cli import run; run(['--help'])",
        "from openvocab.cli import run; assert run(['clasify', 'x.png']) == 2",
        "from openvocab.cli import run; assert run(['classify']) == 2",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(program):
    done = run("-c", f"{program}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'")
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    import openvocab

    assert sorted(openvocab.__all__) == list(openvocab.__all__)
    for name in openvocab.__all__:
        assert getattr(openvocab, name) is not None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_are_one_idea_long(path):
    assert len(path.read_text().splitlines()) <= 600


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_grab_bags():
    names = {path.stem for path in SOURCES}
    assert not names & {"utils", "common", "misc", "helpers"}
    assert not [name for name in names if name.startswith("legacy_") or name.endswith("_v2")]


SECTIONS = ("Config", "SIZES", "Output", "module", "embed", "loss", "recipe", "evaluate", "PEER_KEYS", "SYSTEM")


@pytest.mark.parametrize("path", sorted((ROOT / "src/openvocab/systems").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_system_file_has_its_sections_in_order(path):
    found = []
    for node in ast.parse(path.read_text()).body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        name = getattr(node, "name", names[0] if names else "")
        found += [
            section
            for section in ("SIZES", "embed", "loss", "recipe", "evaluate", "PEER_KEYS", "SYSTEM")
            if name == section
        ]
    assert found == [section for section in SECTIONS if section in found]
    assert found[-1] == "SYSTEM"
    assert importlib.import_module(f"openvocab.systems.{path.stem}").SYSTEM.name == path.stem


def test_nothing_names_this_machine_or_an_index():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    for name in tracked:
        content = (ROOT / name).read_bytes()
        assert len(content) < 6_000_000, name
        for folder in (b"home", b"root", b"work"):
            assert b"/" + folder + b"/" not in content, (name, folder)
