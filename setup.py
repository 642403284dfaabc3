from setuptools import find_packages, setup

# The parts of the pages that `dada explore` and `dada report` write, and configs/, which is dada/configs where it is installed.
PAGES = ["*.html", "*.css", "*.js"]
setup(
    packages=[*find_packages(include=["dada*"]), "dada.configs"],
    package_dir={"dada.configs": "configs"},
    package_data={"dada": ["py.typed"], "dada.configs": ["*.yml"], "dada.explorer": PAGES, "dada.report": PAGES},
)
