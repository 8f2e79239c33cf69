"""What is put on a model, and how it comes off again: hooks, and methods that are replaced on one instance.

Nothing of it goes into a copy. A model that is copied or pickled while it is pruned gives a model that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import update_wrapper
from threading import RLock
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize, ref

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Removable(Protocol):
    """What takes something off a model."""

    def remove(self) -> None:
        """Take it off. Doing so again does nothing."""


class Replacement:
    """A method of one module, replaced on the instance until ``remove()``.

    Args:
        module: The module.
        name: The method.
        around: What runs in its place; takes the original method, and then its arguments.
        default: The original where the module has none.
    """

    def __init__(
        self, module: nn.Module, name: str, around: Callable[..., Any], default: Callable[..., Any] | None = None
    ) -> None:
        self._attributes, self._name = vars(module), name
        self._before = self._attributes.get(name)
        self.original: Callable[..., Any] = getattr(module, name) if default is None else getattr(module, name, default)
        original = self.original

        def method(*args: Any, **kwargs: Any) -> Any:
            # Someone else may have replaced the method again, and go on calling this one when it is off.
            return around(original, *args, **kwargs) if self._is_on else original(*args, **kwargs)

        self._method, self._is_on = update_wrapper(method, original), True
        self._attributes[name] = self._method

    @property
    def is_outermost(self) -> bool:
        """Whether the method was as its class has it before, and nobody has replaced it since."""
        return self._before is None and self._attributes.get(self._name) is self._method

    def replaces(self, module: nn.Module, name: str) -> bool:
        """Return whether it is the method of that name of that module that was replaced."""
        return self._attributes is vars(module) and self._name == name

    def remove(self) -> None:
        """Put back what was there; someone else's later replacement stays."""
        self._is_on = False
        if self._attributes.get(self._name) is not self._method:
            return
        if self._before is None:
            del self._attributes[self._name]
        else:
            self._attributes[self._name] = self._before


# Of all switches: one of their own could not be copied with what holds it. What holds hooks may be collected, and let
# go of them, while the same thread puts on others.
_switching = RLock()


class HookSwitch:
    """Forward pre-hooks that are on their modules only while a call, or a cache, holds them.

    A module without hooks costs nothing, and what a call has to do in every layer ends with its prefill. The hooks go
    before all others. Several threads may hold them at once.

    Args:
        hooks: The modules, and the hook of each. A hook is called with ``kwargs`` None where it was taken off while
            another thread was about to call it; it then has nothing to do.
        more: What puts something else on the modules for as long.
    """

    def __init__(
        self,
        hooks: Sequence[tuple[nn.Module, Callable[..., Any]]],
        more: Sequence[Callable[[], Removable]] = (),
    ) -> None:
        self._hooks, self._more, self._holders = hooks, more, 0
        self.handles: list[Removable] = []
        self._lasting: WeakKeyDictionary[Any, finalize[Any, Any]] = WeakKeyDictionary()
        self.is_on = False  # a graph cannot look at handles

    def hold(self) -> None:
        """Put the hooks on until as many have let go as hold them."""
        with _switching:
            self._holders += 1
            if not self.handles:
                self._put_on()

    def hold_for(self, holder: object) -> None:
        """Put the hooks on for as long as ``holder`` lives, which keeps nothing of the model alive."""
        if holder not in self._lasting:
            self.hold()
            self._lasting[holder] = finalize(holder, _let_go, ref(self))

    def stays_for(self, holder: object) -> bool:
        """Return whether the hooks are on for as long as ``holder`` lives. A graph keeps those that are on as it is
        made.
        """
        return self.is_on if torch.compiler.is_compiling() else holder in self._lasting

    def guard(self, wrap: Callable[..., Any]) -> None:
        """Put ``wrap(hook)`` on in place of each hook, now if they are on and from now on, and nothing else."""
        with _switching:
            self._more = ()
            self._hooks = [(module, wrap(hook)) for module, hook in self._hooks]
            if self.handles:
                self._take_off()
                self._put_on()

    def let_go(self) -> None:
        """Take the hooks off, if nobody else holds them."""
        with _switching:
            self._holders -= 1
            if self._holders == 0:
                self._take_off()

    def remove(self) -> None:
        """Take the hooks off, whoever holds them."""
        with _switching:
            self._take_off()
            for finalizer in [*self._lasting.values()]:
                finalizer.detach()
            self._lasting.clear()

    def _put_on(self) -> None:
        self.handles = [
            module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True) for module, hook in self._hooks
        ]
        self.handles += [make() for make in self._more]
        self.is_on = True

    def _take_off(self) -> None:
        self.is_on = False
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _let_go(switch: ref[HookSwitch]) -> None:
    held = switch()
    if held is not None:
        held.let_go()


class CleanCopies:
    """Leaves hooks and replacements out of copies of some modules, until ``remove()``.

    Copying and pickling ask an object for its state, on the instance first.

    Args:
        modules: The modules.
        handles: What has been put on them.
    """

    def __init__(self, modules: Iterable[nn.Module], handles: Iterable[Removable]) -> None:
        handles, self._modules = list(handles), list(modules)
        for module in self._modules:
            vars(module)["__getstate__"] = _State(module, handles)

    def remove(self) -> None:
        """Let copies be as they were."""
        for module in self._modules:
            vars(module).pop("__getstate__", None)


class _State:
    """What a copy of ``module`` is made from: its attributes without hooks of these handles, methods put back."""

    def __init__(self, module: nn.Module, handles: list[Removable]) -> None:
        self._module, self._handles = module, handles

    def __call__(self) -> dict[str, Any]:
        state, handles = dict(vars(self._module)), self._now()
        del state["__getstate__"]
        for replaced in (handle for handle in handles if isinstance(handle, Replacement)):
            if replaced._attributes is not vars(self._module):
                continue
            if replaced._before is None:
                state.pop(replaced._name, None)
            else:
                state[replaced._name] = replaced._before
        hooks = {handle.id for handle in handles if isinstance(handle, RemovableHandle)}
        for name, value in state.items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
                state[name] = type(value)((key, hook) for key, hook in value.items() if key not in hooks)
        return state

    def _now(self) -> list[Removable]:
        """Return what is on at this moment."""
        switches = (handle for handle in self._handles if isinstance(handle, HookSwitch))
        return [*self._handles, *(each for switch in switches for each in switch.handles)]


RECORDING = "transformers.utils."
"""Where transformers' hooks come from that record outputs for whoever asks for them, and change nothing."""


def comes_from(hook: object, places: str | tuple[str, ...]) -> bool:
    """Return whether a hook was defined in a module whose name begins with one of ``places``."""
    return str(getattr(hook, "__module__", "")).startswith(places)


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``module`` or a part of it was compiled by itself."""
    return any_compiled(module.modules())


def any_compiled(modules: Iterable[nn.Module]) -> bool:
    """Return whether one of these modules was compiled by itself."""
    for own in map(vars, modules):
        if own.get("_compiled_call_impl") is not None:
            return True
        if "forward" in own and hasattr(own["forward"], "_torchdynamo_orig_callable"):
            return True
    return False


def forget_compiled(modules: Iterable[nn.Module]) -> Iterator[Replacement]:
    """Make code that was compiled of ``modules`` be compiled anew, yielding what undoes it.

    Compiled code is reused as long as its guards hold. No guard looks at hooks, one looks at each ``forward``.
    """
    for module in modules:
        yield Replacement(module, "forward", _as_it_is)


def _as_it_is(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


_REASON = (
    "vitcop prunes here; a graph without breaks holds steps of one token with a StaticCache: call the model itself for "
    "the prompt, or compile with fullgraph=False"
)


def eager(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``hook`` as one that `torch.compile` leaves alone: it runs, and what it is called from is compiled around
    it.
    """
    disabled: Callable[..., Any] = torch.compiler.disable(hook, reason=_REASON)
    return disabled


def unless_compiling(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``hook`` as one that compiled code goes without."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        return None if torch.compiler.is_compiling() else hook(*args, **kwargs)

    return guarded
