"""Reading data, and encoding it as the input and the target of a network. Here rows are samples, as in the files."""

from __future__ import annotations

from fusedmlp.data.bundled import BUNDLED as BUNDLED
from fusedmlp.data.features import FeatureEncoder as FeatureEncoder
from fusedmlp.data.reading import read_table as read_table
from fusedmlp.data.table import Schema as Schema
from fusedmlp.data.table import Table as Table
from fusedmlp.data.targets import ClassEncoder as ClassEncoder
from fusedmlp.data.targets import NumberEncoder as NumberEncoder
from fusedmlp.data.targets import fit_target as fit_target
