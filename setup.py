"""Installs be_nb; every fact comes from settings.ini, so that it is said once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf8")
cfg = settings["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    license="Apache-2.0",
    python_requires=f">={cfg['min_python']}",
    packages=[*find_packages(include=["be_nb", "be_nb.*"]), "be_nb.weights"],
    package_dir={"be_nb.weights": "nbs/results/weights"},  # trained networks: be_nb.load("scenebias-be")
    package_data={"be_nb.weights": ["*.safetensors", "*.json"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "site": cfg["site_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    include_package_data=True,
    zip_safe=False,
)
