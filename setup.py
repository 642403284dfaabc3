from setuptools import setup

# The parts of the page that scripts/explore.py writes.
setup(package_data={"dada.domain_adaptation.explorer": ["*.html", "*.css", "*.js"]})
