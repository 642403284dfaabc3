from setuptools import setup

# The parts of the pages that scripts/explore.py and scripts/report.py write.
PAGES = ["*.html", "*.css", "*.js"]
setup(package_data={f"dada.{name}": PAGES for name in ("explorer", "report")})
