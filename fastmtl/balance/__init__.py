"""Balancers of tasks: from K losses to one gradient. Each works in any loop, without the trainer."""

from .linear import Linear as Linear
from .pcgrad import PCGrad as PCGrad
from .registry import create_balancer as create_balancer
from .registry import list_balancers as list_balancers
