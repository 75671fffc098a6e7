"""A model in one role, alone or as one of several adapters on a base that roles share. Knows no head and no stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

OWN = "default"
"""The adapter of a role that shares its base with no other."""


class Role(nn.Module):
    """A transformers model that speaks through one of its adapters, or through none.

    Of a shared base each role has its own parameters: its adapter and its head; the others' are not among its
    `parameters()`, so that its optimizer and its checkpoints hold its own alone.
    """

    def __init__(
        self, model: PreTrainedModel, adapted: "PeftModel | None" = None, tries: bool = True, adapter: str = OWN
    ) -> None:
        super().__init__()
        self.model = model
        self.tries = tries
        self.adapter = adapter
        # Kept out of the module tree: it wraps `model`, whose parameters would be listed twice.
        self._adapted = (adapted,)

    @property
    def adapted(self) -> "PeftModel | None":
        """The PEFT wrapper, where LoRA adapters are in the model."""
        return self._adapted[0]

    def speak(self) -> None:
        """Make this role's adapter the active one."""
        if self.adapted is None or self.adapted.active_adapter == self.adapter:
            return
        with self.trainable_as_before():
            self.adapted.set_adapter(self.adapter)

    @contextmanager
    def trainable_as_before(self) -> Iterator[None]:
        """What is trained afterwards is what was trained before: PEFT freezes adapters as it switches them."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, without the adapters of other roles."""
        adapters = set(self.adapted.peft_config) if self.adapted is not None else set[str]()
        others = adapters - {self.adapter}
        for name, parameter in super().named_parameters(*args, **kwargs):
            if others.isdisjoint(name.split(".")):
                yield name, parameter
