"""Names of the version before still work, and say what they are called now."""

import pytest

from dada.domain_adaptation import contrastive_learning, cycle_association


def test_the_public_functions_can_be_imported_from_the_module_of_the_definition():
    for name in ("cycle_association_loss", "find_cycles", "spatial_aggregation"):
        assert getattr(contrastive_learning, name) is getattr(cycle_association, name)


@pytest.mark.parametrize("former, name", [("association_loss", "cycle_association_loss"), ("cycle_association", "find_cycles")])
def test_a_former_name_is_the_function_of_today_and_warns(former, name):
    with pytest.warns(DeprecationWarning, match=f"^{former} is now called {name}$"):
        assert getattr(contrastive_learning, former) is getattr(contrastive_learning, name)


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(AttributeError, match="contrastive_learning' has no attribute 'cycle_los'"):
        contrastive_learning.cycle_los  # noqa: B018
