"""Which data, network and loss: data sets, networks, tasks and problems with known solutions."""

from reprolib.tasks.task import TASKS, Problem, Task, register, task

__all__ = ["TASKS", "Problem", "Task", "register", "task"]
