"A live kernel, seen as a front end sees it."
from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

WARM = ("mlcycle", "IPython", "ipywidgets", "numpy", "pandas", "sklearn.linear_model")  # what nearly all cells here lead to


@functools.cache
def forked_in() -> tempfile.TemporaryDirectory[str]:
    "An empty folder, until this process ends."
    return tempfile.TemporaryDirectory(prefix="mlcycle-warm-")


@contextmanager
def started(
    folder: Path,         # Where it works
    stock: bool = True,   # Start it as Jupyter's server does, or fork it, which is much faster?
    **options: Any,       # For `start_kernel`
) -> Iterator[tuple[Any, Any]]:  # Its manager and its client
    "A live kernel. Its channels are sockets in a folder of its own: nobody can take a port from it while it starts."
    with tempfile.TemporaryDirectory(prefix="k") as sockets:
        manager, cwd = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/k"), str(folder)
        if not stock:
            from mlcycle.notebooks.warm.provisioner import ForkProvisioner

            manager.provisioner = ForkProvisioner(kernel_spec=manager.kernel_spec, parent=manager, imports=list(WARM))
            cwd = forked_in().name  # a warm process belongs to one folder: the same for all, which the kernel then leaves
        manager.start_kernel(cwd=cwd, **options)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=120)
            client.execute_interactive(f"__import__('os').chdir({str(folder)!r})", silent=True, timeout=120)
            yield manager, client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


class Kernel:
    "A live kernel, seen as a front end sees it."

    def __init__(self, manager: Any, client: Any):
        self.manager, self.client = manager, client

    def run(self, code: str, cell: str | None = None, live: bool = False, deleted: tuple[str, ...] = ()) -> tuple[str, list[dict[str, Any]]]:
        "Status of the reply, and every output. JupyterLab says the cell's id in the metadata, and allows input where a person sits."
        outputs: list[dict[str, Any]] = []
        self.client.session.metadata = {"cellId": cell, "deletedCells": list(deleted)} if cell else {}
        reply = self.client.execute_interactive(
            code, timeout=120, allow_stdin=live, output_hook=lambda m: outputs.append({"type": m["msg_type"], **m["content"]}))
        return reply["content"]["status"], outputs

    def complete(self, code: str) -> list[str]:
        message = self.client.complete(code, len(code))
        while True:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["parent_header"].get("msg_id") == message:
                return reply["content"]["matches"]


def shown(outputs: list[dict[str, Any]], mime: str = "text/plain") -> str:
    "Everything of one kind that a person sees."
    text = [o["text"] for o in outputs if o["type"] == "stream" and mime == "text/plain"]
    return "\n".join(text + [o["data"][mime] for o in outputs if mime in o.get("data", {})])
