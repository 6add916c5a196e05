"""The run's log: one json object a line, cut back to the checkpoint on resume; TensorBoard when asked."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Log:
    """Rows of a run, in memory and (with `folder`) in `log.jsonl`.

    Rows after the checkpoint (of `resume_stage` past `resume_step`) were written by a process that died before its
    next checkpoint: they are cut off, because the resumed run writes them again.
    """

    def __init__(self, folder: Path | None, resume_stage: int = 0, resume_step: int = 0, tensorboard: bool = False):
        self.path = folder / "log.jsonl" if folder else None
        self.rows: list[Row] = []
        self.board = _board(folder) if tensorboard else None
        if self.path:
            kept = (resume_stage, resume_step)
            old = read(self.path) if self.path.exists() else []
            self.rows = [row for row in old if (row["stage"], row["step"]) <= kept]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.board:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(name, value, row["step"])


def read(path: Path) -> list[Row]:
    """All whole rows of a log; a last line cut by a crash is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _board(folder: Path | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard=true needs the extra `log`: pip install 'openvocab[log]'") from None
    return SummaryWriter(folder)
