"""Python imports this file when it starts, where `fusedmlp.patch_sklearn` has put its folder on PYTHONPATH.

It runs the `sitecustomize` that it stands in front of, and patches scikit-learn as the parent process has.
"""

import importlib.machinery
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_others = [path for path in sys.path if os.path.abspath(path or os.curdir) != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)

if os.environ.get("FUSEDMLP_PATCH_SKLEARN"):
    try:
        from fusedmlp.estimators.patching import patch_sklearn
    except ImportError:  # another Python, which has not got this package
        pass
    else:
        patch_sklearn(verbose=os.environ["FUSEDMLP_PATCH_SKLEARN"] == "verbose")
