"""Where data comes from: tables, named public data sets, generated problems."""

from polytask.sources.catalog import DATASETS as DATASETS
from polytask.sources.catalog import DatasetInfo as DatasetInfo
from polytask.sources.catalog import export_csv as export_csv
from polytask.sources.catalog import load as load
from polytask.sources.catalog import school_splits as school_splits
from polytask.sources.encoding import TableEncoder as TableEncoder
from polytask.sources.synthetic import Synthetic as Synthetic
from polytask.sources.synthetic import clustered as clustered
from polytask.sources.synthetic import conflicting as conflicting
from polytask.sources.synthetic import related as related
from polytask.sources.synthetic import unrelated as unrelated
from polytask.sources.tables import Schema as Schema
from polytask.sources.tables import Source as Source
from polytask.sources.tables import Table as Table
from polytask.sources.tables import read_features as read_features
from polytask.sources.tables import read_table as read_table
from polytask.sources.tables import write_csv as write_csv
