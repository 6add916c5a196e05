"""The size of the house: code lines, longest files, public names, options of the command line, repeated blocks."""

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import openvocab

ROOT = Path(__file__).parents[1] / "src" / "openvocab"
BLOCK = 12


def code_lines(path: Path, imports: bool = True) -> list[str]:
    """Lines that hold code: no blanks, no comments, no docstrings."""
    source = path.read_text()
    kept = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            kept.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if doc or (not imports and isinstance(node, (ast.Import, ast.ImportFrom))):
            kept -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = source.splitlines()
    return [lines[number - 1].strip() for number in sorted(kept) if number <= len(lines) and lines[number - 1].strip()]


def repeated(paths: Iterable[Path]) -> list[str]:
    """Places where a block of lines that stands elsewhere begins; what a file imports is no repetition."""
    places = defaultdict(list)
    for path in paths:
        lines = code_lines(path, imports=False)
        for start in range(len(lines) - BLOCK + 1):
            places[tuple(lines[start : start + BLOCK])].append(f"{path.relative_to(ROOT)}:~{start}")
    return [" = ".join(where) for where in places.values() if len(where) > 1]


def options() -> tuple[int, int, int]:
    """Verbs, the options of all of them together, and how many different ones there are to learn; without help."""
    from typer.main import get_command

    from openvocab.cli import app

    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    names = [p.opts[0] for command in commands for p in command.params if p.param_type_name == "option"]
    return len(commands), len(names), len(set(names))


def main() -> None:
    files = {path: code_lines(path) for path in sorted(ROOT.rglob("*.py"))}
    longest = sorted(files, key=lambda path: -len(path.read_text().splitlines()))[:8]
    print(f"code lines     {sum(map(len, files.values()))} in {len(files)} files (at most 24000 for the whole family)")
    print("longest files  " + ", ".join(f"{p.relative_to(ROOT)} {len(p.read_text().splitlines())}" for p in longest))
    print(f"public names   {len(openvocab.__all__)} (at most 40)")
    print("CLI options    {1} of {0} verbs, {2} different (at most 80)".format(*options()))
    blocks = repeated(files)
    print(f"repeated       {len(blocks)} blocks of {BLOCK} lines" + "".join(f"\n  {block}" for block in blocks))


if __name__ == "__main__":
    main()
