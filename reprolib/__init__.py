"""Curvature at little more than the price of a gradient: five papers, one small package.

``reprolib.curvature``  how the loss looks around the parameters (local models)
``reprolib.optim``      which step to take there (the papers' optimizers)
``reprolib.tasks``      on which data, network and loss
``reprolib.lab``        runs, records, figures

Arrows point one way: curvature <- optim <- lab -> tasks.
"""

__version__ = "0.1.0"
