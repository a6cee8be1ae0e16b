"""Checks the links to the rooms and empties build/lib before each build.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("bench", "mixing", "policies", "server", "weights")


def restore_link(link: Path) -> None:
    """Makes a link of a room that was unpacked as a file with the link's target as its text.

    pip unpacks links of zip archives in this way, and git those of a file system without links.
    setuptools would leave the room out of the package without a word.

    Raises: SystemExit if the room cannot be had.
    """
    if (link / "__init__.py").is_file():  # a link, or a folder in an sdist
        return
    target = Path("..", "..", link.name)
    if link.is_file() and link.read_bytes().strip() == target.as_posix().encode():
        try:
            link.unlink()
            link.symlink_to(target, target_is_directory=True)
        except OSError as error:
            raise SystemExit(
                f"prefmix: {link} must be a link to {target}, which cannot be made here "
                f"({error.strerror}); build where links can be made, or from an sdist"
            ) from None
    if not (link / "__init__.py").is_file():
        raise SystemExit(
            f"prefmix: {link} must lead to the folder {link.name} of the repository; "
            "build from a whole clone, an archive of one, or an sdist"
        )


class BuildFromScratch(build_py):
    """Copies the package's files to an empty folder: setuptools also packs what lies there."""

    def run(self) -> None:
        """See setuptools."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


for room in ROOMS:
    restore_link(Path("src", "prefmix", room))
setup(cmdclass={"build_py": BuildFromScratch})
