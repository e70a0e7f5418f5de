from .api import *
from .checking import GradientReport as GradientReport, check_gradients as check_gradients
from .checkpoint import load_weights as load_weights, save_weights as save_weights
from .datasets import Dataset as Dataset, digits as digits, fashion_mnist as fashion_mnist
from .trainer import Trainer as Trainer

__version__: str
