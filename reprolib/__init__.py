"""Curvature at little more than the price of a gradient: five papers, one small package.

``reprolib.curvature``    how the loss looks around the parameters (local models)
``reprolib.optim``        which step to take there (the papers' optimizers)
``reprolib.tasks``        on which data, network and loss
``reprolib.lab``          how a run is trained
``reprolib.records``      what came out
``reprolib.bench``        what things cost
``reprolib.show``         how results are shown
``reprolib.experiments``  what is tried

Each uses only those above it; ``reprolib.cli`` and ``reprolib.book`` use them all.
"""

__version__ = "0.1.0"
