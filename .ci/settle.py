"""What an output says, without what differs from one execution, or one machine, to the next.

`portable` is what is stored: readable, with the paths and names of this machine replaced. `settled` is what is compared: ids, times and sizes too.
"""
from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("text/plain", "text/html", "text/markdown", "image/svg+xml")
PICTURE = "image/png"

_TIME = r"(?:<|&lt;)?[\d.,]+(?:e[-+]?\d+)? ?(?:seconds|second|secs|sec|s|ms|min|us|µs|ns|h|days|day)\b"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?"
_SETTLED = [(re.compile(pattern), to) for pattern, to in (
    (r"\btmp[a-z0-9_]{8}\b", "TEMPORARY"),
    (r"data:[\w/+.-]+;base64,[\w+/=\s]+", "DATA"),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "ID"),
    (r"datetime\.datetime\([^()]*(?:\([^()]*\))?[^()]*\)", "DATE"),
    (rf"\b\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK})?(?: ?Z| ?UTC|[+-]\d\d:?\d\d)?", "DATE"),
    (r"\b1[6-9]\d{8}(?:\.\d+)?\b", "DATE"),
    (r"\b[0-9a-f]{12,64}\b|\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,11}\b|\b[0-9a-f]{8}\b", "ID"),
    (r"\b([a-z]\w*)-[0-9a-f]{4}\b", r"\1-ID"),
    (r"\bkill( -\w+)? \d+", "kill NUMBER"),
    (r"\b0x[0-9a-f]+\b", "ADDRESS"),
    (r"(\.py|<cell>):\d+\b", r"\1:LINE"),
    (r"\b(127\.0\.0\.1|0\.0\.0\.0|localhost|host):\d+", "host:PORT"),
    (r"\b(port|pid|PID|[Pp]rocess|kernel)([ =:'\"]+)\d+\b", r"\1\2NUMBER"),
    (r"\b[\d.,]+ ?(?:B|bytes|[KMGT]i?B|kB)(?![\w])", "SIZE"),
    (rf"(?:ETA )?{_TIME}(?: {_TIME})*", "TIME"),
    (rf"(?<![\d.:])(?<!\d-){_CLOCK}(?![\d:])", "CLOCK"),
    (r"\b[Pp]ython ?\d+\.\d+(?:\.\d+)?\b", "Python VERSION"),
    (r"\bv?\d+\.\d+\.\d+(?:[.+-]?(?:dev|post|rc|a|b)?\d*)*\b", "VERSION"),
    (r"\b\d+ distributions\b", "N distributions"),
)]
_LONG = re.compile(r"-?\b\d+\.\d{6,}(?:e[-+]?\d+)?\b")  # The last digits of a float hang on the processor
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_PROGRESS = re.compile(r"\d+%\|.*\||\b(it/s|s/it|\?it)\b")


def _user() -> str:
    "The name of who executes, whatever the environment says."
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return getpass.getuser()


def _places() -> list[tuple[re.Pattern[str], str]]:
    "What names this machine, its user or this checkout, longest first, and what stands for it."
    known = {str(ROOT): "/home/user/mlcycle", sys.prefix: "/home/user/venv", sysconfig.get_path("stdlib"): "/usr/lib/python3",
             str(Path.home()): "/home/user"}
    found = {place: stands for path, stands in known.items() for place in (path, os.path.realpath(path)) if len(place) > 1}
    paths = [(rf"(?<![\w/.-]){re.escape(place)}(?![\w-])", found[place]) for place in sorted(found, key=len, reverse=True)]
    made = r"(?:tmp\w{8}|pytest-of-\w+|mlc-\w{8}/work|[\w-]+[-_.][a-z0-9_]{8})(?![\w.-])"  # mkdtemp's names, with or without a prefix
    paths += [(rf"{re.escape(place)}(?:/{made})+", "/tmp/example") for place in sorted({"/tmp", tempfile.gettempdir()}, key=len, reverse=True)]
    names = [(name, stands) for name, stands in ((socket.gethostname(), "host"), (_user(), "user"))
             if name not in ("root", "user", "host", "localhost")]  # root is nobody's name
    return [(re.compile(pattern), stands) for pattern, stands in paths + [(rf"(?<![\w/.-]){re.escape(n)}(?![\w-])", s) for n, s in names]]


PLACES = _places()


def portable(text: str) -> str:
    "A text that says nothing of this machine: its paths, host and user are replaced, colours and former states of a line dropped."
    lines = []
    for line in _ANSI.sub("", text).replace("\r\n", "\n").split("\n"):
        state = next((state for state in reversed(line.split("\r")) if state.strip()), "")
        if not _PROGRESS.search(state):
            lines.append(state)
    text = "\n".join(lines)
    for pattern, stands in PLACES:
        text = pattern.sub(stands, text)
    text = re.sub(r"<ipython-input-\d+-[0-9a-f]+>|/tmp/(?:example/)?ipykernel_\d+/\d+\.py", "<cell>", text)
    return re.sub(r"(<.*?) at 0x[0-9a-fA-F]+(>)", r"\1\2", text)  # as nbdev-clean does


def settled_text(text: str) -> str:
    "A text as it is compared: without ids, times, sizes and versions; spaces and rules of any length are one, since they follow the width of those."
    text = portable(text)
    for pattern, to in _SETTLED:
        text = pattern.sub(to, text)
    text = _LONG.sub(lambda found: f"{float(found[0]):.5g}", text)
    text = re.sub(r">\s*<", ">\n<", text)
    text = re.sub(r"([─━═_-])\1+", r"\1\1", re.sub(r"[^\S\n]+", " ", text))
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _joined(text: str | Sequence[str]) -> str:
    "Notebook files hold texts as lists of lines."
    return text if isinstance(text, str) else "".join(text)


def settled(outputs: Sequence[Mapping[str, Any]]) -> str:
    "The outputs of one cell as one text to compare: streams joined by name, then what it shows; of a picture, that there is one."
    streams: dict[str, str] = {}
    shown = []
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + _joined(output["text"])
        elif output["output_type"] == "error":
            shown.append(f"[error]\n{output['ename']}: {settled_text(output['evalue'])}")
        else:
            shown += [f"[{mime}]\n{settled_text(_joined(output['data'][mime]))}" for mime in TEXTS if mime in output["data"]]
            shown += [f"[{PICTURE}]"] if PICTURE in output["data"] else []
    told = [f"[{name}]\n{settled_text(text)}" for name, text in sorted(streams.items(), reverse=True)]
    return "\n".join(part for part in told + shown if part.partition("\n")[2] or part == f"[{PICTURE}]")


def stored(outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    "The outputs of one cell as its notebook keeps them: portable, streams joined by name, no widgets, no counts, no metadata."
    streams: dict[str, str] = {}
    shown: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + _joined(output["text"])
        elif output["output_type"] in ("display_data", "execute_result"):
            data = {mime: portable(_joined(output["data"][mime])).splitlines(keepends=True) for mime in TEXTS if output["data"].get(mime)}
            data |= {PICTURE: _joined(output["data"][PICTURE]).strip()} if PICTURE in output["data"] else {}
            count = {"execution_count": None} if output["output_type"] == "execute_result" else {}
            shown += [{"output_type": output["output_type"], "data": data, "metadata": {}, **count}] if data else []
    texts = {name: portable(text) for name, text in sorted(streams.items(), reverse=True)}
    return [{"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)} for name, text in texts.items() if text.strip()] + shown
