"""Puts docs/*.md and recipes/ into the wheel, inside the package, for `rlhf docs` and `rlhf recipes`.

All else is in pyproject.toml. An editable install copies nothing: there the folders lie beside the package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = [("docs", "*.md"), ("recipes", "*/*")]


class BuildWithPages(build_py):
    """The ordinary build, and the pages and recipes."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in SHIPPED:
            for file in filter(Path.is_file, Path(folder).glob(pattern)):
                target = Path(self.build_lib, "rlhf", file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithPages})
