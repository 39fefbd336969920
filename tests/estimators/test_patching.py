"""scikit-learn patched: by a call, by the command line, in IPython, and in the processes that are started."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
from sklearn.datasets import load_iris

import fusedmlp
from fusedmlp.estimators.patching import STARTUP, VARIABLE, sklearn_class

X, Y = load_iris(return_X_y=True)
PRINT_MODULES = "from sklearn.neural_network import MLPClassifier, MLPRegressor\nprint(MLPClassifier.__module__)\n"
OURS, THEIRS = "fusedmlp.estimators.classifier", "sklearn.neural_network._multilayer_perceptron"


@pytest.fixture
def patched():
    fusedmlp.patch_sklearn()
    yield
    fusedmlp.unpatch_sklearn()


def python(*arguments, stdin=None, **environment):
    """(status, standard output, standard error) of a Python process."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"FUSEDMLP_BACKEND": "numpy"} | environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


def test_patching_and_back():
    import sklearn.neural_network
    import sklearn.neural_network._multilayer_perceptron as home

    theirs, path = home.MLPClassifier, os.environ.get("PYTHONPATH")
    assert not fusedmlp.sklearn_is_patched()
    fusedmlp.patch_sklearn()
    fusedmlp.patch_sklearn()
    try:
        assert fusedmlp.sklearn_is_patched()
        for module in (home, sklearn.neural_network):
            assert module.MLPClassifier is fusedmlp.MLPClassifier
            assert module.MLPRegressor is fusedmlp.MLPRegressor
        assert sklearn_class("MLPClassifier") is theirs
        assert os.environ["PYTHONPATH"].split(os.pathsep).count(STARTUP) == 1
    finally:
        fusedmlp.unpatch_sklearn()
    fusedmlp.unpatch_sklearn()
    assert not fusedmlp.sklearn_is_patched()
    assert home.MLPClassifier is sklearn.neural_network.MLPClassifier is theirs
    assert os.environ.get("PYTHONPATH") == path
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("first", ["import sklearn.neural_network", "import sklearn", "pass"])
def test_before_and_after_the_import_of_scikit_learn(first):
    code = f"{first}\nimport fusedmlp; fusedmlp.patch_sklearn()\n{PRINT_MODULES}"
    code += "from sklearn.neural_network._multilayer_perceptron import MLPRegressor as R; print(R is MLPRegressor)\n"
    assert python("-c", code) == (0, f"{OURS}\nTrue\n", "")


def test_patching_imports_nothing_heavy():
    code = "import sys, fusedmlp; fusedmlp.patch_sklearn(); print({'numpy', 'sklearn'} & set(sys.modules))"
    assert python("-c", code) == (0, "set()\n", "")


@pytest.mark.parametrize("way", ["script", "module", "code", "stdin"])
def test_ways_to_run(script, tmp_path, way):
    code = PRINT_MODULES + "import sys; print(sys.argv[1:], __name__)\n"
    path = script(code)
    words = {"script": [path], "module": ["-m", "script"], "code": ["-c", code], "stdin": ["-"]}[way]
    stdin = code if way == "stdin" else None
    done = python("-m", "fusedmlp", *words, "a", "--b", stdin=stdin, PYTHONPATH=str(tmp_path))
    assert done == (0, f"{OURS}\n['a', '--b'] __main__\n", "")


def test_a_script_finds_its_neighbours_and_itself(script):
    script("value = 7", "neighbour.py")
    path = script(
        """
        import pickle, sys, neighbour
        class Here: pass
        print(neighbour.value, sys.argv[0] == __file__, type(pickle.loads(pickle.dumps(Here()))).__name__)
        sys.exit(3)
        """
    )
    assert python("-m", "fusedmlp", path) == (3, "7 True Here\n", "")


def test_a_line_for_each_call_and_a_table(script):
    path = script(
        """
        from sklearn.datasets import load_iris
        from sklearn.neural_network import MLPClassifier
        X, y = load_iris(return_X_y=True)
        model = MLPClassifier(max_iter=9, tol=1e9, n_iter_no_change=1).fit(X, y)
        model.predict(X), model.predict(X)
        """
    )
    status, out, err = python("-m", "fusedmlp", "-v", "--profile", path, COLUMNS="120")
    assert (status, out) == (0, "")
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == [
        "fusedmlp: MLPClassifier.fit: numpy",
        "fusedmlp: MLPClassifier.predict: numpy",
        "fusedmlp: MLPClassifier.predict: numpy",
    ]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [(row[0], row[1], row[3], row[4]) for row in sorted(rows)] == [
        ("MLPClassifier.fit", "1", "numpy", "composed"),
        ("MLPClassifier.predict", "2", "numpy", "composed"),
    ]


WORKERS = """
import multiprocessing, sys
from joblib import Parallel, delayed
from sklearn.neural_network import MLPRegressor

def class_here(_):
    from sklearn.neural_network import MLPClassifier
    return MLPClassifier.__module__

if __name__ == "__main__":
    names = set(Parallel(n_jobs=2, backend=sys.argv[1])(delayed(class_here)(i) for i in range(2)))
    if sys.argv[1] == "loky":
        for method in multiprocessing.get_all_start_methods():
            with multiprocessing.get_context(method).Pool(1) as pool:
                names |= set(pool.map(class_here, [0]))
    print(names, MLPRegressor.__module__)
"""


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_worker_processes(script, backend):
    status, out, err = python("-W", "ignore", "-m", "fusedmlp", script(WORKERS), backend)
    assert (status, out) == (0, f"{ {OURS} } fusedmlp.estimators.regressor\n"), err


def test_another_sitecustomize_runs_too(tmp_path, script):
    script("print('mine')", "sitecustomize.py")
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1)'])"
    status, out, _ = python("-m", "fusedmlp", "-c", code, PYTHONPATH=str(tmp_path))
    assert (status, sorted(out.split())) == (0, ["1", "mine", "mine"])  # each process writes when its buffer is full


def test_commands_stay_commands(tmp_path):
    (tmp_path / "train").write_text("raise SystemExit('a script')", encoding="utf-8")
    status, out, _ = python("-m", "fusedmlp", "train", "--help")
    assert status == 0
    assert "Usage: fusedmlp train" in out
    status, out, _ = python("-m", "fusedmlp", "--help")
    assert "python -m fusedmlp [-v] [--profile] SCRIPT.py [ARGUMENTS]" in out
    status, _, err = python("-m", "fusedmlp", "trian", "x.csv")
    assert (status, "No such command 'trian'" in err) == (2, True)
    status, _, err = python("-m", "fusedmlp", "absent.py")
    assert (status, err) == (2, "fusedmlp: can't open file 'absent.py': No such file or directory\n")
    status, _, err = python("-m", "fusedmlp", "-c")
    assert (status, "-c: expected a module or code after it" in err) == (1, True)


def test_ipython_extension():
    code = f"import fusedmlp\nfusedmlp.load_ipython_extension(None)\n{PRINT_MODULES}"
    code += "fusedmlp.unload_ipython_extension(None)\nprint(fusedmlp.sklearn_is_patched())\n"
    assert python("-c", code) == (0, f"{OURS}\nFalse\n", "")


def test_pickles_of_scikit_learn_load_while_patched():
    """They become this package's estimators, and go on training from the same moments."""
    theirs = sklearn_class("MLPClassifier")(solver="adam", random_state=0)
    theirs.partial_fit(X, Y, classes=[0, 1, 2])
    data = pickle.dumps(theirs)
    fusedmlp.patch_sklearn()
    try:
        ours = pickle.loads(data)
    finally:
        fusedmlp.unpatch_sklearn()
    assert type(ours) is fusedmlp.MLPClassifier
    assert ours.class_weight is None
    theirs.partial_fit(X, Y)
    ours.partial_fit(X, Y)
    assert abs(ours.coefs_[0] - theirs.coefs_[0]).max() < 1e-8


def test_estimators_of_a_patched_script_are_pickled_as_this_packages(patched):
    from sklearn.neural_network import MLPClassifier

    data = pickle.dumps(MLPClassifier(max_iter=9, tol=1e9, n_iter_no_change=1).fit(X, Y))
    fusedmlp.unpatch_sklearn()
    assert type(pickle.loads(data)) is fusedmlp.MLPClassifier
