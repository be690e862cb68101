"""One row an epoch, in log.csv and, if asked for, in TensorBoard's event files."""

from __future__ import annotations

import csv
import io

from common.checkpoint import write_atomically


def write_csv(rows, path):
    """Write all rows anew: after a resume no epoch stands there twice, or half."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(text.getvalue(), path)


class TensorBoard:
    """Event files; nothing at all where they were not asked for."""

    def __init__(self, folder, wanted, step):
        self.writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SystemExit(
                "Expected TensorBoard for --tensorboard but it is not installed: "
                "pip install tensorboard, or read log.csv"
            ) from None
        # What an interrupted run wrote beyond its checkpoint is not shown.
        self.writer = SummaryWriter(folder, purge_step=step)

    def add(self, row, step):
        """Add the numbers of one row."""
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)

    def close(self):
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()
