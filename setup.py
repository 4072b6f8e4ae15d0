"Build mlcycle from `settings.ini`, the one source of its metadata."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.optionxform = str
settings.read(HERE / "settings.ini", encoding="utf-8")


def lines(section: str, key: str) -> list[str]:
    return [line for line in settings[section][key].splitlines() if line.strip()]


def own(section: str) -> list[str]:
    return [key for key in settings[section] if key not in settings.defaults()]


def entry_points() -> dict[str, list[str]]:
    groups = {"console_scripts": [f"{k} = {settings['console_scripts'][k]}" for k in own("console_scripts")]}
    for section in settings.sections():
        if section.startswith("entry_points."):
            group = section.removeprefix("entry_points.")
            groups[group] = [f"{key} = {settings[section][key]}" for key in own(section)]
    return groups


class Sdist(sdist):
    "An sdist that carries settings.ini, without which setup.py cannot run."

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        shutil.copy2(HERE / "settings.ini", Path(base_dir) / "settings.ini")


setup(
    version=settings["DEFAULT"]["version"],
    author=settings["DEFAULT"]["author"],
    keywords=settings["DEFAULT"]["keywords"].split(),
    install_requires=lines("DEFAULT", "requirements"),
    extras_require={name: lines("extras", name) for name in own("extras")},
    entry_points=entry_points(),
    packages=find_packages(include=["mlcycle", "mlcycle.*"]),
    package_data={"mlcycle.ui.widgets": ["static/*"]},
    include_package_data=False,  # else setuptools takes the folder for a package that was forgotten
    cmdclass={"sdist": Sdist},
)
