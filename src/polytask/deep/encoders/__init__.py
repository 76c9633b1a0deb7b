"""Encoders: named stages between which sharing may happen."""

from polytask.deep.encoders.adapters import from_hugging_face as from_hugging_face
from polytask.deep.encoders.adapters import from_sequential as from_sequential
from polytask.deep.encoders.adapters import from_timm as from_timm
from polytask.deep.encoders.base import BranchedEncoder as BranchedEncoder
from polytask.deep.encoders.base import Encoder as Encoder
from polytask.deep.encoders.base import pooled as pooled
from polytask.deep.encoders.images import convnet as convnet
from polytask.deep.encoders.images import resnet as resnet
from polytask.deep.encoders.inputs import TableInput as TableInput
from polytask.deep.encoders.inputs import TensorInput as TensorInput
from polytask.deep.encoders.inputs import TokenInput as TokenInput
from polytask.deep.encoders.sequences import bilstm as bilstm
from polytask.deep.encoders.tables import mlp as mlp
