from .api import *
from .checking import GradientReport as GradientReport, check_gradients as check_gradients
from .datasets import Dataset as Dataset, digits as digits, fashion_mnist as fashion_mnist
from .trainer import Trainer as Trainer

__version__: str
