"""Where data comes from: tables, images, named public data sets, generated problems."""

from polytask.sources.catalog import DATASETS as DATASETS
from polytask.sources.catalog import DatasetInfo as DatasetInfo
from polytask.sources.catalog import export_csv as export_csv
from polytask.sources.catalog import load as load
from polytask.sources.catalog import load_images as load_images
from polytask.sources.catalog import school_splits as school_splits
from polytask.sources.encoding import TableEncoder as TableEncoder
from polytask.sources.images import few_per_class as few_per_class
from polytask.sources.images import labelled_images as labelled_images
from polytask.sources.images import read_idx as read_idx
from polytask.sources.images import read_idx_images as read_idx_images
from polytask.sources.images import read_image_folder as read_image_folder
from polytask.sources.synthetic import Synthetic as Synthetic
from polytask.sources.synthetic import clustered as clustered
from polytask.sources.synthetic import conflicting as conflicting
from polytask.sources.synthetic import curved_pair as curved_pair
from polytask.sources.synthetic import related as related
from polytask.sources.synthetic import unrelated as unrelated
from polytask.sources.tables import Schema as Schema
from polytask.sources.tables import Source as Source
from polytask.sources.tables import Table as Table
from polytask.sources.tables import read_features as read_features
from polytask.sources.tables import read_table as read_table
from polytask.sources.tables import write_csv as write_csv
