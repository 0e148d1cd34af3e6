"""What scikit-learn's tools ask of a classifier, without scikit-learn."""

import inspect
from typing import Any, TypeVar

from strm_lightning.errors import InputError

Self = TypeVar("Self", bound="ScikitLearnHabits")


class ScikitLearnHabits:
    """Parameters by name, and copies without examples: enough for ``clone``, ``cross_val_score`` and grid search."""

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Set arguments of the constructor.

        Raises:
            ValueError: there is no such argument, or it cannot have that value; nothing is set then.
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
        """Refuse parameters that make no sense."""

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())

    def __sklearn_clone__(self: Self) -> Self:
        return type(self)(**self.get_params())  # weights are shared, examples are not
