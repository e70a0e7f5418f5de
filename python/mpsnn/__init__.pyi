from .api import *
from .datasets import Dataset as Dataset, digits as digits, fashion_mnist as fashion_mnist
from .trainer import Trainer as Trainer

__version__: str
