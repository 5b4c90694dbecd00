"""Properties that all expressions share: their inputs, the replacement of inputs, and pickling."""

import pickle

import numpy as np
import pytest

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import ArrayLeaf, Mapped, Shifted, replace_leaves
from imageryxr.render.masks import MaskUnion
from imageryxr.render.paint import LayerStack

ONE = ArrayLeaf(np.arange(24).reshape(2, 3, 4) % 2)
TWO = ArrayLeaf(np.arange(24).reshape(2, 3, 4) % 3)
RGBA = ArrayLeaf(np.full((2, 3, 4, 4), 7, np.uint8), tail=(4,))
WHOLE = IndexBox.of_shape((2, 3, 4))


@pytest.mark.parametrize(
    ("expr", "inputs"),
    [
        (ONE, ()),
        (Shifted(ONE, (0, 1, 0)), (ONE,)),
        (Mapped(ONE, np.negative, "int64"), (ONE,)),
        (MaskUnion((ONE, TWO)), (ONE, TWO)),
        (LayerStack((RGBA,), first_wins=True), (RGBA,)),
    ],
)
def test_inputs_are_the_fields_that_are_expressions(expr, inputs):
    assert expr.inputs == inputs
    assert len(expr.needs(WHOLE)) == len(inputs)


def test_replacing_no_input_returns_the_same_object():
    union = MaskUnion((ONE, Shifted(TWO, (0, 1, 0))))
    assert union.map_inputs(lambda child: child) is union
    assert replace_leaves(union, lambda leaf: leaf) is union


def test_a_leaf_in_several_fields_is_replaced_by_one_call():
    leaves_read = []

    def swap(leaf):
        leaves_read.append(leaf)
        return TWO

    union = replace_leaves(MaskUnion((ONE, Mapped(ONE, np.abs, "int64"))), swap)
    assert leaves_read == [ONE]
    np.testing.assert_array_equal(evaluate(union, WHOLE), TWO.array != 0)


def test_bounds_contain_those_of_all_inputs():
    union = MaskUnion((ONE, Shifted(TWO, (0, 0, -2))))
    assert union.bounds == IndexBox((0, 0, 0), (2, 3, 6))


def test_a_pickled_expression_holds_no_cached_values():
    expr = Shifted(Mapped(ONE, np.abs, "int64"), (0, 1, 0))
    before = pickle.dumps(expr)
    assert expr.inputs[0].inputs == (ONE,)
    assert expr.dtype == np.dtype("int64")
    assert pickle.dumps(expr) == before
    again = pickle.loads(before)
    np.testing.assert_array_equal(evaluate(again, WHOLE), evaluate(expr, WHOLE))
