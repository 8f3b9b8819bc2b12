"""Log lines of this package: plain ones for people, or a JSON object each for machines that gather logs."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from datetime import UTC, datetime
from typing import Any

#: Set to `json`, each line is a JSON object; the processes that a command starts inherit it.
FORMAT = "PATCHLABEL_LOG_FORMAT"
#: What a log record has of itself; anything else was given with `extra`, and is a field of the JSON line.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A line of JSON: time (UTC, ISO 8601), level, logger, message, and what came with `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, without a line break."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(level: int = logging.INFO, *, force: bool = False) -> None:
    """Log lines of our own on standard error, and no warnings of libraries (unless python's -W asks for them).

    Args:
        level: of our own lines; NOTSET for warnings alone, which is all that libraries have to say to a user.
        force: takes the place of whatever logging has been set up.
    """
    handler, plain = logging.StreamHandler(sys.stderr), logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if os.environ.get(FORMAT) == "json" else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=force)
    for ours_only in ("jobs", "pipeline", "patchdct"):
        logging.getLogger(ours_only).setLevel(level)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # which warns of torchvision's use of it
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
