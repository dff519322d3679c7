"""What a framework gives the process that this runs in: a share of the cores, a device.

A framework is asked only where something has imported it already, which is so in its workers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

__all__ = ["assigned_cores", "assigned_device"]


def assigned_cores() -> int | None:
    """The cores that the framework assigns to this worker.

    Ray: the CPU resources of the actor or task, rounded down, at least 1. Spark: those of the task,
    `spark.task.cpus`.

    Returns:
        None where no framework says: outside of them, or in an actor of Ray without CPU resources.
    """
    if (resources := _resources_of_ray()) is not None:
        cores = resources.get("CPU")
        return None if cores is None else max(1, int(cores))
    if (task := _task_of_spark()) is not None:
        return max(1, int(task.cpus()))
    return None


def assigned_device() -> torch.device:
    """The device for this worker's maps.

    Ray: a GPU where the actor or task has one, else the CPU. Spark: the task's GPU, where Spark
    assigns them. Otherwise a GPU where PyTorch sees one, else the CPU.

    Raises:
        RuntimeError: where Ray assigns a GPU and PyTorch sees none.
    """
    if (resources := _resources_of_ray()) is not None:
        if not resources.get("GPU"):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise RuntimeError(
                "Ray assigns a GPU to this worker, and torch.cuda.is_available() is False there: "
                "install a PyTorch with CUDA, leave num_gpus out, or pass device='cpu'"
            )
        return torch.device("cuda")
    if (task := _task_of_spark()) is not None and "gpu" in task.resources():
        return torch.device(f"cuda:{task.resources()['gpu'].addresses[0]}")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _resources_of_ray() -> dict[str, float] | None:
    """What Ray has assigned to this process; None where it is no worker of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    resources: dict[str, float] = context.get_assigned_resources()
    return resources


def _task_of_spark() -> Any:
    """The task of Spark that this process runs; None where there is none."""
    pyspark = sys.modules.get("pyspark")
    return None if pyspark is None else pyspark.TaskContext.get()
