"""A test double of Apple's service behind coremltools' `MLComputePlan`, and of the commands that describe a Mac.

It stands in for Core ML alone: coremltools' own Python classes, and all code of this project, run as they are. Where
an operation would go is decided here by a rule that any reader can check: lookups and casts to the CPU, what
multiplies to the Neural Engine, the rest to the Neural Engine as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CPU_ONLY = frozenset({"gather", "cast", "greater_equal", "select"})

COMMANDS = {
    "sysctl": 'case "$2" in machdep.cpu.brand_string) echo "Apple M0 (a test)";; hw.model) echo Mac0,0;; hw.memsize) echo 17179869184;; esac',
    "sw_vers": 'case "$1" in -productVersion) echo 15.5;; -buildVersion) echo 24F74;; esac',
    "pmset": """case "$*" in
'-g batt') echo "Now drawing from 'AC Power'";;
'-g therm') echo "Note: No thermal warning level has been recorded";;
-g) echo " lowpowermode         0";;
esac""",
}


def install() -> None:
    """milrun's stand-in, with a compute plan."""
    import milrun  # noqa: PLC0415
    from milrun import standin  # noqa: PLC0415

    milrun.install()
    standin.ModelProxy.get_compute_plan = staticmethod(compute_plan)


def compute_plan(path: str, units: str) -> Any:
    """What `MLComputePlan.load_from_path` asks for: a plan over the operations of the compiled package."""
    from coremltools.models import compute_device as device  # noqa: PLC0415
    from coremltools.models import compute_plan as plan  # noqa: PLC0415

    from milrun import standin  # noqa: PLC0415
    from milrun.package import read_package  # noqa: PLC0415

    cpu = device.MLCPUComputeDevice(standin.CPUDeviceProxy())
    engine = device.MLNeuralEngineComputeDevice(standin.NeuralEngineDeviceProxy())
    functions, usages, costs = {}, {}, {}
    for name, function in read_package(path).spec.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        operations = [
            plan.MLModelStructureProgramOperation(
                inputs={}, operator_name=f"ios18.{o.type}", outputs=[], blocks=[], __proxy__=None
            )
            for o in block.operations
        ]
        placed = [
            (made, o.type) for made, o in zip(operations, block.operations, strict=True) if o.type != "const"
        ]
        for made, kind in placed:
            supported = [cpu] if kind in CPU_ONLY or units == "CPU_ONLY" else [cpu, engine]
            usages[id(made)] = plan.MLComputePlanDeviceUsage(supported[-1], supported)
            costs[id(made)] = plan.MLComputePlanCost(1.0 / len(placed))
        functions[name] = plan.MLModelStructureProgramFunction(
            inputs=[], block=plan.MLModelStructureProgramBlock([], operations, [])
        )

    class Proxy(standin.ComputePlanProxy):
        model_structure = plan.MLModelStructure(None, plan.MLModelStructureProgram(functions), None)

        def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
            return usages.get(id(operation))

        def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
            return costs.get(id(operation))

    return plan.MLComputePlan(Proxy())


def environment(folder: Path) -> dict[str, str]:
    """Variables with which every Python process has `install` done before its first line, and finds the commands."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("import apple\napple.install()\n")
    (folder / "bin").mkdir()
    for name, body in COMMANDS.items():
        script = folder / "bin" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    here = Path(__file__).parent
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (folder / "site", here, here.parent))),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
