"""An experiment is found by its name, which is its path."""

from __future__ import annotations

import pytest

from reprolib.experiments import experiments


@pytest.mark.parametrize("name", experiments())
def test_the_name_of_an_experiment_is_its_path(name):
    module = experiments()[name]
    path = module.__name__.removeprefix("reprolib.experiments.")
    assert name == module.NAME == path.replace(".", "/").replace("_", "-")
    first = (module.__doc__ or "").partition("\n")[0]
    assert first.endswith((".", "?", ",")) and len(first) <= 120, "the line that `reprolib run` says of it"
