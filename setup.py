"""Empties build/lib before each build: setuptools also packs what an earlier build left there.

Everything else about the package is in pyproject.toml.
"""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildFromScratch(build_py):
    """Copies the package's files to an empty folder."""

    def run(self) -> None:
        """See setuptools."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": BuildFromScratch})
