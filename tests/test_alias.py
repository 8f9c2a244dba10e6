"""`calmrl_lab.extract` is the package `feature_extractors`, down to its modules."""

import subprocess
import sys


def test_modules_below_the_alias_are_the_same_objects():
    code = """
import calmrl_lab.extract
import calmrl_lab.extract.extraction as aliased
import feature_extractors.extraction as real
from calmrl_lab.extract.datasets import datasets
from calmrl_lab.extract.encoders.minilm import encoders
import feature_extractors.datasets, feature_extractors.encoders
import pickle
assert calmrl_lab.extract is feature_extractors
assert aliased is real
assert real.__name__ == real.__spec__.name == 'feature_extractors.extraction'
assert datasets is feature_extractors.datasets.datasets
assert encoders is feature_extractors.encoders.encoders
assert 'openmoji' in datasets.names()
assert pickle.loads(pickle.dumps(aliased.extract)) is real.extract
try:
    import calmrl_lab.extract.nonsense
except ModuleNotFoundError as error:
    assert 'nonsense' in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
