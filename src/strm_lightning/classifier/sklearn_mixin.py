"""The estimator interface of scikit-learn, without the dependency."""

import inspect
from typing import Any, TypeVar

from strm_lightning.errors import InputError

Self = TypeVar("Self", bound="SklearnMixin")


class SklearnMixin:
    """Parameters by name and cloning, as ``clone``, ``cross_val_score`` and ``GridSearchCV`` need them."""

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name; ``deep`` has no effect."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Set arguments of the constructor.

        Raises:
            InputError: there is no such argument, or its value is invalid. Then no argument is changed.
        """
        for name in params:
            if name not in self._names():
                raise InputError(f"no parameter {name!r}; there are {', '.join(self._names())}")
        before = {name: getattr(self, name) for name in params}
        vars(self).update(params)
        try:
            self._check_params()
        except InputError:
            vars(self).update(before)
            raise
        return self

    def _check_params(self) -> None:
        """Raise an `InputError` if a parameter is invalid."""

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())

    def __sklearn_clone__(self: Self) -> Self:
        return type(self)(**self.get_params())  # shares the weights, has no examples
