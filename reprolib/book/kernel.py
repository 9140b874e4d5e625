"""A kernel that is forked from a process which has done its imports, instead of a new interpreter."""

from __future__ import annotations

import atexit
import os
from importlib.metadata import EntryPoint
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner


class Forked:
    """A process forked now, which becomes a kernel when :meth:`launch` is called; from then on it is used like a Popen."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        context = get_context("fork")
        theirs, self._tell = context.Pipe(duplex=False)
        self._process = context.Process(target=become_kernel, args=(theirs, self._tell))
        self._process.start()
        self.pid = self._process.pid

    def launch(self, command: list[str], environment: dict[str, str], folder: str) -> None:
        """Run the kernel of ``command``, which starts with the interpreter, ``-m`` and the launcher."""
        self._tell.send((command[command.index("ipykernel_launcher") + 1 :], environment, folder))

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for its end; its exit status."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.pid is not None and self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()


def become_kernel(told: Connection, tell: Connection) -> None:
    """The life of a :class:`Forked`, which ends early if nobody is left to launch it."""
    tell.close()
    os.setsid()  # signals of the terminal do not concern it, and its own children share its group
    try:
        arguments, environment, folder = told.recv()
    except EOFError:
        return
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import pandas as pd
    from ipykernel.kernelapp import IPKernelApp

    pd.set_option(
        "display.max_columns", 20
    )  # what pandas finds when a kernel imports it; here it was imported without one
    # It leaves when its parent dies; a new interpreter finds that number in its environment while it imports.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    atexit._run_exitfuncs()  # a forked process would leave without them


class Provisioner(LocalProvisioner):
    """Gives the process that is waiting to whoever starts a kernel next."""

    waiting: Forked | None = None

    @classmethod
    def offer(cls, kernel: Forked) -> None:
        """Let the next kernel of this process be ``kernel``."""
        cls.waiting = kernel
        factory = KernelProvisionerFactory.instance()
        factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:{cls.__name__}", factory.GROUP_NAME)
        factory.default_provisioner_name = "forked"

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch the waiting kernel; a second one, after a restart, is a new interpreter."""
        kernel, Provisioner.waiting = Provisioner.waiting, None
        if kernel is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or os.getcwd()
        kernel.launch(cmd, kwargs["env"], self.cwd)
        self.process = kernel  # type: ignore[assignment]  # it is asked for what a Forked has, too
        self.pid = self.pgid = kernel.pid
        return self.connection_info
