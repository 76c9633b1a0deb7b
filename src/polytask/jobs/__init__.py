"""The work behind each command: functions without a terminal, so that they can be tested and used alone."""

from polytask.jobs.comparing import Comparing as Comparing
from polytask.jobs.comparing import prepare as prepare
from polytask.jobs.folders import run_folder as run_folder
from polytask.jobs.folders import safe_name as safe_name
from polytask.jobs.modelling import predict as predict
from polytask.jobs.modelling import train as train
from polytask.jobs.starting import write_settings as write_settings
from polytask.jobs.tables import open_table as open_table
