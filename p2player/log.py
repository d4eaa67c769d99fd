"""The node's log: one line an event on stderr, as text or as JSON.

An event is a short sentence and named values: `log.info("layer pulled", layer="9f2c…", seconds=1.2)`. Values that
hold for everything a part does, such as a migration's id, are bound once with `bind`.
"""

import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
_RANK: dict[str, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


def _plain(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or any(char in text for char in ' "\n=') else text


@dataclass(frozen=True, slots=True)
class Log:
    """Where events go, from which level on, and what each of them carries.

    Args:
        style: `text` for people, `json` for machines: one document a line.
    """

    style: Literal["text", "json"] = "text"
    level: Level = "info"
    stream: TextIO | None = None
    bound: dict[str, Any] = field(default_factory=dict)

    def bind(self, **values: Any) -> "Log":
        """A log whose every event also carries `values`."""
        return Log(self.style, self.level, self.stream, {**self.bound, **values})

    def debug(self, event: str, **values: Any) -> None:
        """What only a developer wants to know."""
        self._write("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        """What an operator may want to read later."""
        self._write("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """What went wrong and was mended or survived."""
        self._write("warning", event, values)

    def error(self, event: str, **values: Any) -> None:
        """What went wrong and needs somebody."""
        self._write("error", event, values)

    def failure(self, event: str, error: BaseException, **values: Any) -> None:
        """An unexpected exception: one line with its innermost place; the whole trace at level debug."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
        self._write("error", event, {**values, "error": f"{type(error).__name__}: {error}", "at": place})
        self.debug("trace", trace="".join(traceback.format_exception(error)))

    def _write(self, level: Level, event: str, values: dict[str, Any]) -> None:
        if _RANK[level] < _RANK[self.level]:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        merged = {**self.bound, **values}
        if self.style == "json":
            line = json.dumps({"time": stamp, "level": level, "event": event, **merged}, default=str)
        else:
            line = " ".join([stamp, level, event, *(f"{key}={_plain(value)}" for key, value in merged.items())])
        stream = self.stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more: no reason to stop a node
