"""The build hook: compiles gencli/kernels where there is a C compiler. Without one the package is pure Python."""

from __future__ import annotations

import runpy
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the library into the wheel, or beside its sources for an editable install."""
        build = runpy.run_path(f"{self.root}/gencli/kernels/build.py")
        try:
            made = build["build"]()
        except build["NoCompilerError"] as error:
            self.app.display_warning(f"gencli without its C kernels, so slower on CPUs: {error}")
            return
        build_data["artifacts"].append(f"gencli/kernels/{made.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
